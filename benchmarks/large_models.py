"""How fast is a step of Qwen2.5-VL 3B and 7B (random weights, bfloat16) on one GPU, against TRL, and at what MFU?

1,000 visual tokens, LoRA on the language model or everything trained. Full training keeps float32 weights and computes
in bfloat16, as `cwdpo train` does; where a side does not fit into memory its row says so. The sides do not fit beside
each other, so each is measured by itself: the GPU has to be idle otherwise.
`python benchmarks/large_models.py --out benchmarks/results/large_models.json`
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from common import arguments, count_flops, hardware, in_turns, paired_ratio, peak_bytes, report, start, summary
from cwdpo.training.callbacks.throughput import peak_flops
from sides import Side, ours, trl
from workload import QWEN_3B, QWEN_7B, TINY, make_model, make_processor, make_rows

SIZES = {"3B": QWEN_3B, "7B": QWEN_7B, "tiny": TINY}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", nargs="+", default=["3B", "7B"], choices=list(SIZES))
    parser.add_argument("--modes", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--visual", type=int, default=1000)
    parser.add_argument("--response", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--pairs", type=int, default=8, help="Pairs of a step; halved until both sides fit.")
    parser.add_argument("--checkpointing", action="store_true", help="Gradient checkpointing on both sides.")
    options = start(parser, argv)
    if options.tiny:
        options.sizes, options.visual, options.response, options.pairs = ["tiny"], 16, [6], 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peak = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    machine, rows = hardware(), list[dict[str, Any]]()
    processor = make_processor(options.visual)
    for name in options.sizes:
        for mode in options.modes:
            for response in options.response:
                rows += _case(options, processor, name, mode, response, device, peak)
    return report("large models on one GPU against TRL", options, machine, rows)


def _case(
    options: Any, processor: Any, name: str, mode: str, response: int, device: str, peak: float | None
) -> list[dict[str, Any]]:
    """Measure all sides of one setting with as many pairs as all of them can hold."""
    lora, pairs = mode == "lora", options.pairs
    dtype = torch.bfloat16 if lora else torch.float32
    makers: dict[str, Callable[[list[dict[str, Any]]], Side]] = {}
    common: dict[str, Any] = {"lora": lora, "bf16": True, "checkpointing": options.checkpointing, "copied": False}

    def fresh() -> Any:
        return make_model(SIZES[name], processor, dtype, device)

    makers["trl"] = lambda data: trl(fresh(), processor, data, **common)
    makers["ours"] = lambda data: ours(fresh(), processor, data, **common)
    makers["ours_shared_prefix"] = lambda data: ours(fresh(), processor, data, attention="shared_prefix", **common)
    if lora:
        makers["ours_cached_features"] = lambda data: ours(fresh(), processor, data, cache=True, **common)
    while pairs:
        data = make_rows(pairs, options.visual, response)
        found = {side: _measure(make, data, options.repeats) for side, make in makers.items()}
        if all(f is not None for f in found.values()) or pairs == 1:
            break
        pairs //= 2
    rows: list[dict[str, Any]] = []
    for side, measured in found.items():
        row: dict[str, Any] = {"model": name, "mode": mode, "side": side, "pairs": pairs}
        row |= {"visual_tokens": options.visual, "response_tokens": response, "fits": measured is not None}
        if measured is not None:
            seconds, flops, memory = measured
            row |= {"seconds_per_pair": summary(seconds, pairs), "flops": flops, "peak_bytes": memory}
            median = row["seconds_per_pair"]["median"] * pairs
            row["mfu"] = flops / median / peak if peak else None
            other = found["trl"]
            if side != "trl" and other is not None:
                row["times_as_fast"] = paired_ratio(other[0], seconds)
        rows.append(row)
    return rows


def _measure(
    make: Callable[[list[dict[str, Any]]], Side], data: list[dict[str, Any]], repeats: int
) -> tuple[list[float], float, int] | None:
    """Seconds, FLOPs and peak memory of a side's step, or None where it does not fit."""
    side: Side | None = None
    try:
        side = make(data)
        seconds = in_turns({"step": side.step}, repeats, warmup=2)["step"]
        return seconds, count_flops(side.step), peak_bytes(side.step)
    except torch.OutOfMemoryError:
        return None
    finally:
        del side
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
