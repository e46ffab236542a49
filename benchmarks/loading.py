"""How much main memory do processes take that read a model and share its weights, all of them or one for all?

A random Qwen2.5-VL of 112 million weights, saved in bfloat16, read and shared by FSDP2 on CPUs over gloo, as `cwdpo
train` does it: as it is saved (the base under adapters), and in float32 (all weights trained). Without GPUs the parts
stay in main memory too: all of them together are the model once. Counted is what the processes have more than before,
at the moment when it is most: memory of their own, all of them together; and pages of the file, which they share and
the kernel may take back, in the one that has most of them.
`python benchmarks/loading.py --out benchmarks/results/loading.json`
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import arguments, hardware, report, start

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from torch import distributed

from cwdpo.models.fsdp import share_weights
from cwdpo.models.loading import load_model
from cwdpo.recipe import ModelSection
from sharding_on_cpu import in_processes
from tiny_models import tiny_model

SIZES: dict[str, int] = {
    "hidden_size": 512,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
}
"""Of the language model."""

MIB = 2**20


class Watch(threading.Thread):
    """Notes how much memory this process has, of its own and of files, twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, int, int]] = []
        self._over = threading.Event()

    def look(self) -> None:
        """Note the time and the bytes."""
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        found = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
        self.seen.append((time.monotonic(), found["Anonymous"], found["Rss"] - found["Anonymous"]))

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(0.05):
            self.look()

    def end(self) -> list[tuple[float, int, int]]:
        """Stop, and return what was seen."""
        self._over.set()
        self.join()
        self.look()
        return self.seen


def highest(seen: list[list[tuple[float, int, int]]]) -> int:
    """The most memory of their own that the processes had together at one moment, above what they had at first."""
    now, most = [0] * len(seen), 0
    for _, rank, own in sorted((row[0], rank, row[1]) for rank, process in enumerate(seen) for row in process):
        now[rank] = own - seen[rank][0][1]
        most = max(most, sum(now))
    return most


def measured(section: ModelSection, count: int, *, once: bool, folder: Path) -> dict[str, Any]:
    """Read a model in `count` processes and share it; what that takes."""

    def work(rank: int) -> tuple[list[tuple[float, int, int]], float, str]:
        distributed.barrier()
        watch, began = Watch(), time.monotonic()
        watch.look()
        watch.start()
        model = load_model(section, trainable=False, bare=once and rank > 0)
        distributed.barrier()
        shared = share_weights(model)
        seconds = time.monotonic() - began
        seen = watch.end()
        total: Any = sum(p.to_local().double().sum() for p in shared.parameters())
        distributed.all_reduce(total)
        return seen, seconds, total.item().hex()

    found = in_processes(count, work, folder)
    assert len({total for *_, total in found}) == 1
    by_process = [[max(row[i] for row in seen) - seen[0][i] for seen, *_ in found] for i in (1, 2)]
    return {
        "processes": count,
        "read_by": "one" if once else "all",
        "dtype": section.dtype,
        "own_mib": highest([seen for seen, *_ in found]) // MIB,
        "own_mib_by_process": [own // MIB for own in by_process[0]],
        "of_the_file_mib": max(by_process[1]) // MIB,
        "seconds_on_the_wall": round(max(seconds for _, seconds, _ in found), 2),
        "sum_of_weights": found[0][2],
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure both ways, with the type of the file and with a type that weights are turned into."""
    options = start(arguments("Main memory of reading and sharing a model."), argv)
    machine, rows, count = hardware(), list[dict[str, Any]](), 2 if options.tiny else 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {} if options.tiny else SIZES

        def save(rank: int) -> int:
            model = tiny_model("qwen2_5_vl", **sizes).to(torch.bfloat16)
            model.save_pretrained(folder / "model")
            return sum(p.numel() for p in model.parameters())

        (size,) = in_processes(1, save, folder / "save")  # memory that this process let go of would be taken up again
        for dtype in ("bfloat16", "float32"):
            section = ModelSection(path=str(folder / "model"), dtype=dtype)
            sides = [measured(section, count, once=once, folder=folder / f"{dtype}-{once}") for once in (False, True)]
            assert sides[0]["sum_of_weights"] == sides[1]["sum_of_weights"]
            whole = size * getattr(torch, dtype).itemsize / MIB
            for row in sides:
                rows.append(row | {"model_mib": round(whole), "own_over_model": round(row["own_mib"] / whole, 2)})
                print(rows[-1], file=sys.stderr)
    return report("main memory of reading and sharing a model", options, machine, rows)


if __name__ == "__main__":
    main()
