"""What the benchmarks share: timers that take turns, memory, arithmetic, and JSON with the hardware.

Every script answers one question and pairs both sides in one process, in turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch


def _now() -> float:
    """The time: of the clock on the wall with a GPU; without one, of this process on the processor.

    Seconds of a process are the same on a busy machine as on an idle one, which seconds on the wall are not.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def in_turns(sides: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every side, one after the other in each round, the order turned round from one round to the next."""
    for run in sides.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            gc.collect()
            began = _now()
            sides[name]()
            seconds[name].append(_now() - began)
    return seconds


def summary(seconds: list[float], examples: int = 1) -> dict[str, float]:
    """Median, quartiles and minimum, per example."""
    each = sorted(s / examples for s in seconds)
    quartiles = statistics.quantiles(each, n=4) if len(each) > 1 else [each[0]] * 3
    return {
        "median": statistics.median(each),
        "low": quartiles[0],
        "high": quartiles[2],
        "min": each[0],
        "n": len(each),
    }


def paired_ratio(one: list[float], other: list[float]) -> dict[str, float]:
    """How many times as long `one` takes as `other`: the median over rounds, with quartiles."""
    return summary([a / b for a, b in zip(one, other, strict=True)])


def saved_bytes(run: Callable[[], Any], model: Any) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once, weights left out."""
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = max(kept.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes allocated at once above what there was before: by the GPU's allocator, or the profiler's on a CPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    found: Any = profiler.profiler
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def count_flops(run: Callable[[], Any]) -> float:
    """FLOPs of a run, backward passes included."""
    from torch.utils import flop_counter

    # What is not in torch's own table would count for nothing: attention on a CPU, and the products of experts.
    aten = torch.ops.aten
    missing = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(
            q, k, v
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, q, k, v, *_, **__: flop_counter.sdpa_backward_flop_count(gradient, q, k, v)
        ),
        # Rows of one group meet its matrix alone: all rows with one; or columns, each with its own row.
        aten._grouped_mm: lambda a, b, *_, **__: 2 * a[-2] * a[-1] * b[-1],
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=missing) as counter:
        run()
    return float(counter.get_total_flops())


# -- reporting --------------------------------------------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    """What the figures were measured on and with."""
    import peft
    import transformers

    import cwdpo

    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "wall" if torch.cuda.is_available() else "processor seconds of the process",
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "cwdpo": cwdpo.__version__,
    }
    try:
        import trl

        found["trl"] = trl.__version__
    except ImportError:
        found["trl"] = None
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def arguments(description: str) -> argparse.ArgumentParser:
    """What every script takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--tiny", action="store_true", help="A tiny model and few repeats, to see that the script runs."
    )
    parser.add_argument("--repeats", type=int, default=7, help="Rounds, each with every side once.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write; default: standard output.")
    return parser


def start(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Read the arguments and quiet the libraries."""
    import logging

    from transformers.utils import logging as notices

    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.tiny:
        options.repeats = min(options.repeats, 2)
    notices.set_verbosity_error()
    notices.disable_progress_bar()
    logging.disable(logging.WARNING)
    return options


def report(
    question: str, options: argparse.Namespace, machine: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write the JSON and return it."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "out"}
    result = {
        "question": question,
        "settings": settings,
        "hardware": machine | {"load_after": os.getloadavg()[0]},
        "rows": rows,
    }
    text = json.dumps(result, indent=2) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    return result
