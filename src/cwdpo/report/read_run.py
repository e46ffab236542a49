"""Run directories as records, read without trusting that they are finished, whole or ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cwdpo.errors import RunError, one_line
from cwdpo.files import read_json, read_jsonl
from cwdpo.report.run_record import DEFAULT_NAME, STAGES, RunRecord
from cwdpo.report.seeds import pool_seeds
from cwdpo.report.values import clean
from cwdpo.safe_yaml import parse_yaml

__all__ = ["read_run", "read_runs"]

_STAGE_FILES = (
    *("done.json", "metrics.jsonl", "probes.jsonl", "probe_prompts.jsonl", "probe_tokens.json", "probe_start.json"),
    *("diagnosis.json", "early_stop.json", "throughput.json"),
)
_FILES = (
    *("manifest.json", "data/done.json", "evaluation/summary.json", "evaluation/rows.jsonl"),
    "benchmarks/summary.json",
    *(f"negatives/{stage}/{name}.json" for stage in STAGES for name in ("counts", "tallies", "pictures")),
    *(f"{stage}/{name}" for stage in STAGES for name in _STAGE_FILES),
)
"""What the report reads of a run."""


def read_runs(folders: Sequence[Path], *, pool: bool = False) -> list[RunRecord]:
    """Read run directories and give each a label of its own.

    Args:
        folders: The run directories.
        pool: Put runs of one recipe with different seeds together.

    Raises:
        RunError: There is none, or one is no run directory.
    """
    if not folders:
        raise RunError("a report needs at least one run directory; give the --out folder of `cwdpo train`")
    runs = [read_run(Path(folder)) for folder in folders]
    runs = pool_seeds(runs) if pool else runs
    names = [r.folder.resolve().name for r in runs]
    choices = (
        *([[r.name for r in runs]] if all(r.name != DEFAULT_NAME for r in runs) else []),
        [r.objective(r.last_stage) for r in runs],
        [r.method for r in runs],
        [r.name for r in runs],
        names,
        [f"{name} ({i})" for i, name in enumerate(names, 1)],
    )
    labels = next(c for c in choices if len(set(c)) == len(runs))
    trained = {r.start_digest(): r.objective("stage1") for r in runs if r.after_stage1}
    for run, label in zip(runs, labels, strict=True):
        run.label = one_line(label, 60)
        if run.after_stage1:
            run.origin = run.objective("stage1")
        elif (digest := run.start_digest()) is not None:
            run.origin = trained.get(digest, run.origin)
    return runs


def read_run(folder: Path) -> RunRecord:
    """Read a run directory; what is missing or broken is left out and noted.

    Raises:
        RunError: The folder has no readable recipe, so it is no run directory.
    """
    path = folder / "recipe.yaml"
    hint = "give the --out folder of `cwdpo train`"
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; {hint}")
    if not path.is_file():
        raise RunError(f"{folder}: not a run directory, it has no recipe.yaml; {hint}")
    if (foreign := _foreign(path, folder)) is not None:
        raise RunError(f"{path}: {foreign}; {hint}")
    try:
        recipe = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{path}: cannot be read: {one_line(error)}; {hint}") from None
    if not isinstance(recipe, dict):
        raise RunError(f"{path}: not a recipe; {hint}")
    run = RunRecord(folder, clean(recipe))
    for name in _FILES:
        if not (folder / name).is_file():
            continue
        if (foreign := _foreign(folder / name, folder)) is not None:
            run.troubles.append(f"{name} {foreign}")
            continue
        rows: list[Any] = []
        run.files[name] = rows
        try:
            if name.endswith(".jsonl"):
                rows.extend(clean(row) for row in read_jsonl(folder / name))
            else:
                run.files[name] = clean(read_json(folder / name))
        except (OSError, ValueError) as error:
            how = "is read only in part" if name.endswith(".jsonl") else "cannot be read"
            run.troubles.append(f"{name} {how}: {one_line(error, 120)}")
    return run


def _foreign(file: Path, folder: Path) -> str | None:
    """Return why a file of a run is not read: a stranger's run may link to what is the reader's own."""
    inside = file.resolve().is_relative_to(folder.resolve())
    return None if inside else "is a link that leads out of the run, and is not read"
