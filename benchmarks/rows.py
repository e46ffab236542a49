"""How do memory and start-up time grow with the rows of the data?

Each phase of a run is a process of its own: reading and sharing out the data (`prepare`), making negatives of the
rejected responses in it (`negatives`), opening the run and making its first update (`first update`), resuming from a
checkpoint in the middle of the epoch (`resume`), and `cwdpo check`. The rows are generated, with a handful of pictures.
`python benchmarks/rows.py --out benchmarks/results/rows.json`
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from common import arguments, hardware, report, start

COLOURS = ("red", "blue", "green", "yellow", "grey", "black", "white", "brown")
SHAPES = ("circle", "square", "triangle", "star", "bus", "dog", "chair", "tree")
PICTURES = 100
PHASES = ("check", "prepare", "negatives", "first update", "resume")


def write_rows(folder: Path, count: int) -> Path:
    """Write rows with small texts about a few pictures; return the file."""
    folder.mkdir(parents=True)
    for i in range(PICTURES):
        Image.new("RGB", (56, 56), (2 * i, 255 - i, 100)).save(folder / f"{i}.png")
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as handle:
        for i in range(count):
            shape, other = SHAPES[i % 8], SHAPES[(i + 1) % 8]
            row = {
                "id": f"row-{i}",
                "image": f"{i % PICTURES}.png",
                "prompt": "Describe the image in one sentence.",
                "chosen": f"A {COLOURS[i // 8 % 8]} {shape} beside {i} others.",
                "rejected": f"A {COLOURS[i // 8 % 8]} {other} beside {i} others.",
            }
            handle.write(json.dumps(row) + "\n")
    return path


def settings(data: Path) -> dict[str, Any]:
    """Return the recipe: Stage 1 with the data's own negatives, one row an update."""
    stage = {"max_steps": 3, "batch_size": 1, "micro_batch_size": 1, "log_steps": 1, "save_steps": 1}
    return {
        "name": "rows",
        "model": {"path": "scenes"},
        "data": {"path": str(data), "held_out": 0.05, "stage1_share": 0.6},
        "negatives": {"stage1": {"dataset": 1}, "stage2": {"dataset": 1}},
        "stage1": stage,
        "stage2": {**stage, "enabled": False},
        "probes": {"every": 0},
        "evaluation": {"prompts": 0},
    }


def phase(name: str, data: Path, out: Path) -> None:
    """Do one phase in this process; print its facts as JSON."""
    from cwdpo.errors import StoppedError
    from cwdpo.recipe import Recipe
    from cwdpo.run import Run
    from cwdpo.run.prepare_data import prepare_data
    from cwdpo.run.progress import Silent
    from cwdpo.run.run_rows import with_negatives

    facts: dict[str, Any] = {"imports": time.process_time()}

    class Watching(Silent):
        """Notes the first update of this process; then the run is stopped, as a user would stop it."""

        def training(self, figures: Any) -> None:
            if figures is not None and figures.step > (1 if name == "resume" else 0) and "first" not in facts:
                facts["first"] = time.process_time()
                os.kill(os.getpid(), signal.SIGTERM)

    recipe = Recipe.model_validate(settings(data))
    run = Run(out, recipe, Watching())
    if name == "check":
        from rich.console import Console

        from cwdpo.cli.check import inspect_recipe

        with Path(os.devnull).open("w") as nowhere:
            inspect_recipe(recipe, Console(file=nowhere))
    elif name == "prepare":
        with run.locked():
            run.settle()
            prepare_data(run)
    elif name == "negatives":
        with run.locked():
            with_negatives(run, "stage1", recipe.negatives.stage1, run.model_path)
    else:
        with contextlib.suppress(StoppedError):
            run.execute()
    print(json.dumps(facts))


def measured(name: str, data: Path, out: Path) -> dict[str, Any]:
    """Run one phase in a process of its own; return its seconds and the most memory that it had."""
    call = [sys.executable, __file__, "--phase", name, "--data", str(data), "--run", str(out)]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(call, stdout=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{name}: exit code {process.returncode}")
        said.seek(0)
        facts = json.loads(said.read().splitlines()[-1])
    whole = usage.ru_utime + usage.ru_stime
    return {
        "phase": name,
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
        "cpu_seconds": round(facts.get("first", whole) - facts["imports"], 2),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def bytes_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    options = start(parser, argv)
    if options.tiny:
        options.rows, options.phases = [200], ["prepare", "negatives", "first update", "resume"]
    machine, rows = hardware(), list[dict[str, Any]]()
    for count in options.rows:
        folder = Path(tempfile.mkdtemp(prefix="rows-"))
        try:
            data = write_rows(folder / "data", count)
            for name in options.phases:
                rows.append({"rows": count, **measured(name, data, folder / "run")})
                print(json.dumps(rows[-1]), file=sys.stderr)
            rows.append({"rows": count, "data_bytes": bytes_of(folder / "data"), "run_bytes": bytes_of(folder / "run")})
        finally:
            shutil.rmtree(folder)
    return report("memory and start-up time against rows", options, machine, rows)


if __name__ == "__main__":
    if "--phase" in sys.argv:
        given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
        phase(given["--phase"], Path(given["--data"]), Path(given["--run"]))
    else:
        main()
