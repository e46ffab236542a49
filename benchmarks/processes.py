"""Are the loss curves of 1, 2 and 4 processes one curve? Whole runs of both stages on CPUs, over gloo.

Every run is `cwdpo train` with the same recipe and a tiny model of the tests. No negative is written by a model
(rounding could change one); `grpo` samples its responses. Beside each curve stands how far it is at most from that of
one process, over all logged values of both stages (relative to the value, or to 1 where it is smaller). ZeRO needs
deepspeed.
`python benchmarks/processes.py --out benchmarks/results/processes.json`
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import arguments, hardware, report, start

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny_models import tiny
from tiny_runs import CliServer, rows_of, tiny_recipe, write_yaml

WAYS = [(1, ""), (2, ""), (4, ""), (2, "fsdp2"), (4, "fsdp2"), (2, "zero2"), (2, "zero3")]
"""How many processes, and what they share beside the rows."""

OBJECTIVES: dict[str, dict[str, Any]] = {
    "cw_dpo": {},
    "grpo": {"objective": "grpo", "samples": 3, "max_new_tokens": 5},
}


def recipe(model: Path, folder: Path, objective: str, updates: int) -> Path:
    """A recipe of `updates` updates in each stage; the last one of an epoch is not full."""
    mix = {"dataset": 1, "other": 1, "max_new_tokens": 5, "batch_size": 4}
    stage = {"max_steps": updates, "log_steps": 1, "epochs": 9}
    values = tiny_recipe(
        model,
        data={"size": 46, "stage1_share": 0.5},
        negatives={"stage1": mix, "stage2": mix},
        stage1=stage,
        stage2=stage | OBJECTIVES[objective],
    )
    return write_yaml(folder / f"{objective}.yaml", values)


def curves(run: Path) -> dict[str, list[dict[str, float]]]:
    """What each stage logged, but for how far the epoch is, which counts micro-batches."""
    rows = {stage: rows_of(run / stage / "metrics.jsonl") for stage in ("stage1", "stage2")}
    return {stage: [{k: v for k, v in row.items() if k != "epoch"} for row in found] for stage, found in rows.items()}


def farthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of a logged value, relative to 1 at least.

    Where policy and reference are the same, the sign of a margin is rounding, so accuracies are left out there.
    """
    found = 0.0
    for stage, rows in one.items():
        for row, twin in zip(rows, other[stage], strict=True):
            rounding = {"rewards/accuracies"} if abs(row.get("rewards/margins", 1.0)) < 1e-5 else set[str]()
            for key in row.keys() - rounding:
                found = max(found, abs(row[key] - twin[key]) / max(1.0, abs(row[key])))
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run every way of every objective."""
    options = start(arguments("Loss curves of 1, 2 and 4 processes."), argv)
    machine, rows = hardware(), list[dict[str, Any]]()
    ways = [way for way in WAYS if not way[1].startswith("zero") or find_spec("deepspeed") is not None]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server, model = CliServer(folder / "calls"), tiny("qwen2_5_vl", folder / "model")
        for objective in OBJECTIVES:
            asked, first = recipe(model, folder, objective, 2 if options.tiny else 12), dict[str, Any]()
            for ranks, sharding in ways[:2] if options.tiny else ways:
                run = folder / f"{objective}-{ranks}-{sharding}"
                call = server.start("train", asked, "--out", run, ranks=ranks, sharding=sharding)
                if set(call.codes()) != {0}:
                    raise SystemExit(f"{objective}, {ranks} processes, {sharding or 'ddp'}: {call.stderr[-2000:]}")
                found = curves(run)
                first = first or found
                row = {
                    "objective": objective,
                    "processes": ranks,
                    "sharding": sharding or ("ddp" if ranks > 1 else "none"),
                }
                row |= {"largest_difference": farthest(first, found)}
                row |= {f"{s}_loss": [r["loss"] for r in found[s] if "loss" in r] for s in found}
                rows.append(row)
                print(f"{objective} {ranks} {sharding or 'ddp'}: {row['largest_difference']:.1e}", file=sys.stderr)
        server.close()
    return report("are the curves of 1, 2 and 4 processes one curve", options, machine, rows)


if __name__ == "__main__":
    main()
