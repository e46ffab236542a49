"""Are the loss curves of 1, 2 and 4 processes one curve? Whole runs of both stages on CPUs, over gloo.

Every run is `cwdpo train` with the same recipe and a tiny model of the tests. No negative is written by a model
(rounding could change one); `grpo` samples its responses. Beside each curve stands how far it is at most from that of
one process, over all logged values of both stages (relative to the value, or to 1 where it is smaller).
`python benchmarks/processes.py --out benchmarks/results/processes.json`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from common import arguments, hardware, report, start

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from several_processes import difference, logged_values
from tiny_models import tiny
from tiny_runs import CliServer, rows_of, tiny_recipe, write_yaml

WAYS = [(1, ""), (2, ""), (4, ""), (2, "fsdp2"), (4, "fsdp2")]
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


def losses(run: Path, stage: str) -> list[float]:
    """A stage's loss at each update."""
    return [row["loss"] for row in rows_of(run / stage / "metrics.jsonl") if "loss" in row]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run every way of every objective."""
    options = start(arguments("Loss curves of 1, 2 and 4 processes."), argv)
    machine, rows = hardware(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server, model = CliServer(folder / "calls"), tiny("qwen2_5_vl", folder / "model")
        for objective in OBJECTIVES:
            asked, first = recipe(model, folder, objective, 2 if options.tiny else 12), None
            for ranks, sharding in WAYS[:2] if options.tiny else WAYS:
                run = folder / f"{objective}-{ranks}-{sharding}"
                call = server.start("train", asked, "--out", run, ranks=ranks, sharding=sharding)
                if set(call.codes()) != {0}:
                    raise SystemExit(f"{objective}, {ranks} processes, {sharding or 'ddp'}: {call.stderr[-2000:]}")
                first = first or run
                row = {
                    "objective": objective,
                    "processes": ranks,
                    "sharding": sharding or ("ddp" if ranks > 1 else "none"),
                }
                row |= {"largest_difference": max(difference(a, b) for _, a, b in logged_values(first, run))}
                row |= {f"{stage}_loss": losses(run, stage) for stage in ("stage1", "stage2")}
                rows.append(row)
                print(f"{objective} {ranks} {sharding or 'ddp'}: {row['largest_difference']:.1e}", file=sys.stderr)
        server.close()
    return report("are the curves of 1, 2 and 4 processes one curve", options, machine, rows)


if __name__ == "__main__":
    main()
