"""What a run directory says, read without trusting that it is finished, whole or ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from cwdpo.errors import RunError, one_line
from cwdpo.files import read_json, read_jsonl

__all__ = ["KINDS", "RunRecord", "StageRecord", "as_list", "as_map", "number", "read_run", "read_runs"]

KINDS = ("chosen", "hard", "medium", "easy", "rejected")
"""Order in which kinds of response are shown; others follow in alphabetical order."""

_LARGEST = 1e30

_DEFAULT_NAME = "cwdpo run"

_OBJECTIVES = {
    "sft": "SFT",
    "sft_c": "SFT-C",
    "dpo": "DPO",
    "cw_dpo": "CW-DPO",
    "dpo_shift": "DPO-Shift",
    "rpo": "DPO+NLL",
}


def number(value: Any) -> float | None:
    """Return a finite number that an axis can show as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _LARGEST else None


def as_map(value: Any) -> dict[str, Any]:
    """Return a mapping as it is, anything else as an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, anything else as an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


@dataclass
class StageRecord:
    """One stage of a run.

    Attributes:
        name: `stage1` or `stage2`.
        title: What it optimised, in words ("CW-DPO").
        settings: Its section of the recipe.
        probes: Rows of `probes.jsonl`.
        metrics: Rows of `metrics.jsonl` that belong to the loss.
        done: `done.json`; empty while the stage is under way.
    """

    name: str
    title: str
    settings: dict[str, Any]
    probes: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    done: dict[str, Any]

    @property
    def kinds(self) -> list[str]:
        """Kinds of response that the probes measured, in the order they are shown."""
        found = {kind for row in self.probes for kind in as_map(row.get("kinds"))}
        return [k for k in KINDS if k in found] + sorted(found - set(KINDS))

    def probe(self, *path: str) -> list[tuple[float, float]]:
        """Return (step, value) of a quantity in the probes, for instance `probe("kinds", "easy", "logp_mean")`."""
        return _series(self.probes, path)

    def metric(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of a logged quantity."""
        return _series(self.metrics, (name,))


@dataclass
class RunRecord:
    """One run directory.

    Attributes:
        folder: Where it is.
        name: `name` of its recipe.
        recipe: The recipe as resolved.
        manifest: `manifest.json`, empty where there is none.
        stages: The stages that have left something, by name.
        summary: `evaluation/summary.json`, empty where there is none.
        rows: `evaluation/rows.jsonl`.
        data: `data/done.json`.
        negatives: Counts by stage and source.
        troubles: Files that could not be read, one sentence each.
        label: How the report calls it.
        origin: How the report calls the model that its last stage started from.
    """

    folder: Path
    name: str
    recipe: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict[str, Any])
    stages: dict[str, StageRecord] = field(default_factory=dict[str, StageRecord])
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    negatives: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    troubles: list[str] = field(default_factory=list[str])
    label: str = ""
    origin: str = "base model"

    @property
    def last_stage(self) -> str:
        """The stage that the evaluation measures: Stage 2, or Stage 1 where that is the last one."""
        return "stage2" if self.enabled("stage2") else "stage1"

    @property
    def after_stage1(self) -> bool:
        """Tell whether the last stage starts from what this run's own Stage 1 made."""
        return self.last_stage == "stage2" and self.enabled("stage1")

    def enabled(self, stage: str) -> bool:
        """Tell whether the recipe has this stage."""
        return as_map(self.recipe.get(stage)).get("enabled", True) is not False

    def objective(self, stage: str) -> str:
        """Return what a stage optimises, in words."""
        return objective_title(as_map(self.recipe.get(stage)))

    @property
    def method(self) -> str:
        """The stages in words: "SFT-C → CW-DPO"."""
        return " → ".join(self.objective(s) for s in ("stage1", "stage2") if self.enabled(s))

    def section(self, when: str) -> dict[str, Any]:
        """Return the summary of `base`, `before` or `after`."""
        return as_map(self.summary.get(when))

    def measure(self, when: str, name: str) -> float | None:
        """Return a figure of the summary; `logp_chosen` and its like are looked up by kind."""
        part = self.section(when)
        if name == "grounding":
            return number(as_map(part.get(name)).get("gap"))
        if name.startswith("logp_"):
            return number(as_map(part.get("logp")).get(name.removeprefix("logp_")))
        return number(part.get(name))

    def start_digest(self) -> str | None:
        """Return the content hash of the model that the last stage started from."""
        stage = self.stages.get(self.last_stage)
        start = stage.done.get("start") if stage else None
        return start if isinstance(start, str) else None


def objective_title(settings: Mapping[str, Any]) -> str:
    """Return the objective of a recipe's stage in words, with what distinguishes it from its relatives."""
    key = str(settings.get("objective", "?"))
    title = _OBJECTIVES.get(key, key)
    if key == "dpo_shift" and (weight := number(settings.get("shift_weight"))) is not None:
        return f"{title} {weight:g}"
    if key == "sft_c" and settings.get("regularizer", "nll_floor") != "nll_floor":
        return f"{title} ({settings['regularizer']})"
    return title


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read run directories and give each a label of its own.

    Raises:
        RunError: There is none, or one is no run directory.
    """
    if not folders:
        raise RunError("a report needs at least one run directory; give the --out folder of `cwdpo train`")
    runs = [read_run(Path(folder)) for folder in folders]
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
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        if (folder / name).is_dir():
            run.stages[name] = _stage(run, name)
    return run


def _stage(run: RunRecord, name: str) -> StageRecord:
    folder = run.folder / name
    metrics = [r for r in _rows(run, folder / "metrics.jsonl") if "loss" in r and number(r.get("step")) is not None]
    probes = [r for r in _rows(run, folder / "probes.jsonl") if number(r.get("step")) is not None]
    settings, done = as_map(run.recipe.get(name)), as_map(_json(run, folder / "done.json"))
    return StageRecord(name, run.objective(name), settings, probes, metrics, done)


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


def _series(rows: Sequence[Mapping[str, Any]], path: Sequence[str]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for row in rows:
        value: Any = row
        for name in path:
            value = as_map(value).get(name)
        step, y = number(row.get("step")), number(value)
        if step is not None and y is not None:
            points.append((step, y))
    return points
