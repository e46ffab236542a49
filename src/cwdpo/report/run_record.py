"""A run directory and its stages, as the report sees them: whatever is missing or odd is empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cwdpo.methods.base import METHODS

__all__ = ["KINDS", "RunRecord", "StageRecord", "as_list", "as_map", "number", "series_of"]

KINDS = ("chosen", "hard", "medium", "easy", "rejected")
"""Order in which kinds of response are shown; others follow in alphabetical order."""

_LARGEST = 1e30


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
        prompts: Rows of `probe_prompts.jsonl`.
        tokens: `probe_tokens.json`.
        diagnosis: `diagnosis.json`.
        early_stop: `early_stop.json`.
        speed: `throughput.json`.
        seeds: The same stage of each seed, where this is their mean.
    """

    name: str
    title: str
    settings: dict[str, Any]
    probes: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    done: dict[str, Any]
    prompts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tokens: dict[str, Any] = field(default_factory=dict[str, Any])
    diagnosis: dict[str, Any] = field(default_factory=dict[str, Any])
    early_stop: dict[str, Any] = field(default_factory=dict[str, Any])
    speed: dict[str, Any] = field(default_factory=dict[str, Any])
    seeds: list[StageRecord] = field(default_factory=list["StageRecord"])

    @property
    def kinds(self) -> list[str]:
        """Kinds of response that the probes measured, in the order they are shown."""
        found = {kind for row in self.probes for kind in as_map(row.get("kinds"))}
        return [k for k in KINDS if k in found] + sorted(found - set(KINDS))

    def probe(self, *path: str) -> list[tuple[float, float]]:
        """Return (step, value) of a quantity in the probes, for instance `probe("kinds", "easy", "logp_mean")`."""
        return series_of(self.probes, path)

    def metric(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of a logged quantity."""
        return series_of(self.metrics, (name,))

    def band(self, read: Callable[[StageRecord], Sequence[tuple[float, float]]]) -> list[tuple[float, float, float]]:
        """Return (step, lowest, highest) of a series over the seeds; nothing where there is one seed."""
        lines = [dict(read(seed)) for seed in self.seeds]
        shared = set(lines[0]).intersection(*lines[1:]) if lines else set[float]()
        return [(x, min(line[x] for line in lines), max(line[x] for line in lines)) for x in sorted(shared)]


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
        tallies: What became of the candidates, by stage and source.
        troubles: Files that could not be read, one sentence each.
        label: How the report calls it.
        origin: How the report calls the model that its last stage started from.
        seeds: The runs that this is the mean of, in the order of their seeds.
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
    tallies: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    troubles: list[str] = field(default_factory=list[str])
    label: str = ""
    origin: str = "base model"
    seeds: list[RunRecord] = field(default_factory=list["RunRecord"])

    @property
    def each(self) -> list[RunRecord]:
        """The runs behind this one: its seeds, or itself."""
        return self.seeds or [self]

    @property
    def seed(self) -> int | None:
        """The seed, where one is known."""
        found = number(self.manifest.get("seed", self.recipe.get("seed")))
        return None if found is None else int(found)

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
        """Return the content hash of the model that the last stage started from; of several seeds, the first one's."""
        stage = self.each[0].stages.get(self.last_stage)
        start = stage.done.get("start") if stage else None
        return start if isinstance(start, str) else None


def objective_title(settings: Mapping[str, Any]) -> str:
    """Return the objective of a recipe's stage in words, with what distinguishes it from its relatives."""
    key = str(settings.get("objective", "?"))
    method = METHODS.installed(key)  # never a file that a stranger's run names
    title = key if method is None else method.title
    if key == "dpo_shift" and (weight := number(settings.get("shift_weight"))) is not None:
        return f"{title} {weight:g}"
    if key == "sft_c" and settings.get("regularizer", "nll_floor") != "nll_floor":
        return f"{title} ({settings['regularizer']})"
    return title


def series_of(rows: Sequence[Mapping[str, Any]], path: Sequence[str]) -> list[tuple[float, float]]:
    """Return (step, value) of what lies at a path in each row, where it is a number."""
    points: list[tuple[float, float]] = []
    for row in rows:
        value: Any = row
        for name in path:
            value = as_map(value).get(name)
        step, y = number(row.get("step")), number(value)
        if step is not None and y is not None:
            points.append((step, y))
    return points
