"""What a run directory says, read without trusting that it is finished, whole or ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cwdpo.errors import RunError, one_line
from cwdpo.files import read_json, read_jsonl
from cwdpo.recipe.safe_yaml import parse_yaml
from cwdpo.report.run_record import RunRecord, StageRecord, as_map, number
from cwdpo.report.seeds import pool_seeds

__all__ = ["read_run", "read_runs"]

_DEFAULT_NAME = "cwdpo run"


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
    named = all(r.name != _DEFAULT_NAME for r in runs)
    choices = (
        *([[r.name for r in runs]] if named else []),
        [r.objective(r.last_stage) for r in runs],
        [r.method for r in runs],
        [r.name for r in runs],
        [r.folder.resolve().name for r in runs],
        [f"{r.folder.resolve().name} ({i})" for i, r in enumerate(runs, 1)],
    )
    labels = next(c for c in choices if len(set(c)) == len(runs))
    for run, label in zip(runs, labels, strict=True):
        run.label = one_line(label, 60)
    trained = {r.start_digest(): r.objective("stage1") for r in runs if r.after_stage1}
    for run in runs:
        if run.after_stage1:
            run.origin = run.objective("stage1")
        elif (digest := run.start_digest()) is not None:
            run.origin = trained.get(digest, run.origin)
    return runs


def read_run(folder: Path) -> RunRecord:
    """Read a run directory; what is missing or broken is left empty and noted.

    Raises:
        RunError: The folder has no readable recipe, so it is no run directory.
    """
    path = folder / "recipe.yaml"
    hint = "give the --out folder of `cwdpo train`"
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; {hint}")
    if not path.is_file():
        raise RunError(f"{folder}: not a run directory, it has no recipe.yaml; {hint}")
    try:
        recipe = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{path}: cannot be read: {one_line(error)}; {hint}") from None
    if not isinstance(recipe, dict):
        raise RunError(f"{path}: not a recipe; {hint}")
    run = RunRecord(folder, str(as_map(recipe).get("name", _DEFAULT_NAME)), as_map(recipe))
    run.manifest = as_map(_json(run, folder / "manifest.json"))
    run.summary = as_map(_json(run, folder / "evaluation" / "summary.json"))
    run.rows = _rows(run, folder / "evaluation" / "rows.jsonl")
    run.data = as_map(_json(run, folder / "data" / "done.json"))
    for name in ("stage1", "stage2"):
        counts = as_map(_json(run, folder / "negatives" / name / "counts.json"))
        if counts:
            run.negatives[name] = counts
        tallies = as_map(as_map(_json(run, folder / "negatives" / name / "tallies.json")).get("sources"))
        if tallies:
            run.tallies[name] = tallies
        if (folder / name).is_dir():
            run.stages[name] = _stage(run, name)
    return run


def _stage(run: RunRecord, name: str) -> StageRecord:
    folder = run.folder / name
    metrics = [r for r in _rows(run, folder / "metrics.jsonl") if "loss" in r and number(r.get("step")) is not None]
    probes = [r for r in _rows(run, folder / "probes.jsonl") if number(r.get("step")) is not None]
    settings, done = as_map(run.recipe.get(name)), as_map(_json(run, folder / "done.json"))
    stage = StageRecord(name, run.objective(name), settings, probes, metrics, done)
    stage.prompts = _rows(run, folder / "probe_prompts.jsonl")
    stage.tokens = as_map(_json(run, folder / "probe_tokens.json"))
    stage.diagnosis = as_map(_json(run, folder / "diagnosis.json"))
    stage.early_stop = as_map(_json(run, folder / "early_stop.json"))
    stage.speed = as_map(_json(run, folder / "throughput.json"))
    return stage


def _json(run: RunRecord, path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        run.troubles.append(f"{path.relative_to(run.folder)} cannot be read: {one_line(error, 120)}")
        return None


def _rows(run: RunRecord, path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    try:
        found.extend(as_map(row) for row in read_jsonl(path) if isinstance(row, dict))
    except (OSError, ValueError) as error:
        run.troubles.append(f"{path.relative_to(run.folder)} is read only in part: {one_line(error, 120)}")
    return found
