"""How does the cost of a prompt grow with the number of responses, with the image, with the length of the responses?

One step of the shared scorer beside one of the separate scorer (every response a sequence of its own), in turns.
`python benchmarks/growth.py --out benchmarks/results/growth.json`
"""

from __future__ import annotations

from typing import Any

from common import arguments, hardware, in_turns, paired_ratio, report, saved_bytes, start, summary
from sides import ours
from workload import SMALL, TINY, make_model, make_processor, make_rows


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8, 12])
    parser.add_argument("--visual", type=int, nargs="+", default=[16, 64, 256, 484])
    parser.add_argument("--response", type=int, nargs="+", default=[10, 20, 50, 100, 200])
    parser.add_argument("--full", action="store_true", help="Train everything; default: adapters.")
    options = start(parser, argv)
    if options.tiny:
        options.k, options.visual, options.response = [1, 3], [16], [6]
    base_visual, base_response = (16, 6) if options.tiny else (256, 20)
    cases = [("responses", k, base_visual, base_response) for k in options.k]
    cases += [("visual tokens", 2, visual, base_response) for visual in options.visual]
    cases += [("response tokens", 2, base_visual, response) for response in options.response]
    machine, rows = hardware(), list[dict[str, Any]]()
    processor = make_processor(max(*options.visual, base_visual))
    model = make_model(TINY if options.tiny else SMALL, processor)
    for what, k, visual, response in cases:
        data = make_rows(1, visual, response, responses=max(k, 2))
        # The weighted likelihood of all responses: what SFT-C trains on, with any number of negatives.
        sides = {
            name: ours(model, processor, data, lora=not options.full, objective="sft_c", responses=k, scorer=name)
            for name in ("shared", "separate")
        }
        seconds = in_turns({name: side.step for name, side in sides.items()}, options.repeats)
        saved = {name: saved_bytes(side.forward, side.model) for name, side in sides.items()}
        rows.append(
            {
                "grows": what,
                "responses": k,
                "visual_tokens": visual,
                "response_tokens": response,
                "seconds_per_prompt": {name: summary(values) for name, values in seconds.items()},
                "times_as_fast": paired_ratio(seconds["separate"], seconds["shared"]),
                "saved_bytes": saved,
                "saved_share": saved["shared"] / saved["separate"],
            }
        )
    return report("growth with responses, image size and response length", options, machine, rows)


if __name__ == "__main__":
    main()
