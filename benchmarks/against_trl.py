"""How long does a pair take, and how much memory, against TRL's DPOTrainer on the same model, pairs and precision?

Time: forward, loss, reference (ours from its cache, TRL's in every step) and backward, both sides in turns.
Memory: bytes kept for the backward pass (saved tensors, each storage once, weights left out), and the allocator's peak
above what was there before. `python benchmarks/against_trl.py --out benchmarks/results/against_trl.json`
"""

from __future__ import annotations

from typing import Any

from common import arguments, hardware, in_turns, paired_ratio, peak_bytes, report, saved_bytes, start, summary
from sides import Side, disagreement, ours, trl
from workload import SMALL, TINY, make_model, make_processor, make_rows

MODES = ("lora", "full")


def compare(mode: str, sides: dict[str, Side], pairs: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    agreement = disagreement(sides["ours"], sides["trl"])
    seconds = in_turns({name: side.step for name, side in sides.items()}, repeats)
    saved = {name: saved_bytes(side.forward, side.model) for name, side in sides.items()}
    peak = {name: peak_bytes(side.step) for name, side in sides.items()}
    others = [name for name in sides if name != "trl"]
    return {
        "mode": mode,
        "seconds_per_pair": {name: summary(values, pairs) for name, values in seconds.items()},
        "times_as_fast": {name: paired_ratio(seconds["trl"], seconds[name]) for name in others},
        "saved_bytes": saved,
        "saved_share": {name: saved[name] / saved["trl"] for name in others},
        "peak_bytes": peak,
        "peak_share": {name: peak[name] / peak["trl"] for name in others},
        "agreement": agreement,
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--visual", type=int, nargs="+", default=[64, 256, 484])
    parser.add_argument("--response", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--pairs", type=int, default=1, help="Pairs of a step.")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    options = start(parser, argv)
    if options.tiny:
        options.visual, options.response = [16], [6]
    size = TINY if options.tiny else SMALL
    machine, rows = hardware(), list[dict[str, Any]]()
    processor = make_processor(max(options.visual))
    model = make_model(size, processor)
    for visual in options.visual:
        for response in options.response:
            data = make_rows(options.pairs, visual, response)
            for mode in options.modes:
                lora = mode == "lora"
                sides = {"trl": trl(model, processor, data, lora=lora), "ours": ours(model, processor, data, lora=lora)}
                if lora:
                    sides["ours_cached_features"] = ours(model, processor, data, lora=True, cache=True)
                found = compare(mode, sides, options.pairs, options.repeats)
                batch = sides["ours"].trainer.update_batches[0]
                lengths = {"prefix_tokens": len(batch.groups[0].prefix_ids), "response_tokens": response}
                rows.append({"visual_tokens": visual, **lengths, **found})
    return report("time and memory of a pair against TRL", options, machine, rows)


if __name__ == "__main__":
    main()
