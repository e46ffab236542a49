"""Does it pay to let the shared prefix attend without a mask (`model.attention: shared_prefix`)?

One step of ours under `sdpa` with a mask beside one under `shared_prefix`, in turns.
`python benchmarks/attention.py --out benchmarks/results/attention.json`
"""

from __future__ import annotations

from typing import Any

from common import arguments, hardware, in_turns, paired_ratio, peak_bytes, report, saved_bytes, start, summary
from sides import disagreement, ours
from workload import SMALL, TINY, make_model, make_processor, make_rows

SIDES = ("sdpa", "shared_prefix")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--visual", type=int, nargs="+", default=[484, 1024])
    parser.add_argument("--response", type=int, default=20)
    options = start(parser, argv)
    if options.tiny:
        options.visual, options.response = [16], 6
    machine, rows = hardware(), list[dict[str, Any]]()
    processor = make_processor(max(options.visual))
    model = make_model(TINY if options.tiny else SMALL, processor)
    for visual in options.visual:
        data = make_rows(1, visual, options.response)
        for lora in (True, False):
            sides = {name: ours(model, processor, data, lora=lora, attention=name) for name in SIDES}
            agreement = disagreement(sides["shared_prefix"], sides["sdpa"])
            seconds = in_turns({name: side.step for name, side in sides.items()}, options.repeats)
            saved = {name: saved_bytes(side.forward, side.model) for name, side in sides.items()}
            peak = {name: peak_bytes(side.step) for name, side in sides.items()}
            rows.append(
                {
                    "mode": "lora" if lora else "full",
                    "visual_tokens": visual,
                    "response_tokens": options.response,
                    "seconds_per_pair": {name: summary(values) for name, values in seconds.items()},
                    "times_as_fast": paired_ratio(seconds["sdpa"], seconds["shared_prefix"]),
                    "saved_share": saved["shared_prefix"] / saved["sdpa"],
                    "peak_share": peak["shared_prefix"] / peak["sdpa"],
                    "agreement": agreement,
                }
            )
    return report("attention of the shared prefix without a mask", options, machine, rows)


if __name__ == "__main__":
    main()
