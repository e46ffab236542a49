"""A run directory and its stages, as the sections of the report see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cwdpo.methods.base import METHODS
from cwdpo.probes.figures import FIGURES, Figure
from cwdpo.report.values import as_list, as_map, number, series_of

__all__ = ["DEFAULT_NAME", "KINDS", "STAGES", "RunRecord", "StageRecord"]

STAGES = {"stage1": "Stage 1", "stage2": "Stage 2"}
"""The stages, and how they are called."""

KINDS = ("chosen", "hard", "medium", "easy", "rejected")
"""Order in which kinds of response are shown; others follow in alphabetical order."""

DEFAULT_NAME = "cwdpo run"

Points = Sequence[tuple[float, float]]


@dataclass
class RunRecord:
    """One run directory, or several seeds of one recipe.

    Attributes:
        folder: Where it is.
        recipe: The recipe as resolved.
        files: What its files hold, by their name in the folder; of a file that is missing or broken there is nothing.
        troubles: Files that could not be read, one sentence each.
        label: How the report calls it.
        origin: How the report calls the model that its last stage started from.
        seeds: The runs that this is the mean of, in the order of their seeds.
    """

    folder: Path
    recipe: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict[str, Any])
    troubles: list[str] = field(default_factory=list[str])
    label: str = ""
    origin: str = "base model"
    seeds: list[RunRecord] = field(default_factory=list["RunRecord"])

    def json(self, name: str) -> dict[str, Any]:
        """Return what a JSON file holds."""
        return as_map(self.files.get(name))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a JSON-lines file."""
        return [as_map(row) for row in as_list(self.files.get(name))]

    @property
    def name(self) -> str:
        """The recipe's `name`."""
        return str(self.recipe.get("name", DEFAULT_NAME))

    @property
    def manifest(self) -> dict[str, Any]:
        """`manifest.json`."""
        return self.json("manifest.json")

    @property
    def summary(self) -> dict[str, Any]:
        """`evaluation/summary.json`."""
        return self.json("evaluation/summary.json")

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        """`evaluation/rows.jsonl`."""
        return self.rows("evaluation/rows.jsonl")

    @property
    def each(self) -> list[RunRecord]:
        """The runs behind this one: its seeds, or itself."""
        return self.seeds or [self]

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """The stages that have left something, by name."""
        return {s: StageRecord(self, s) for s in STAGES if any((one.folder / s).is_dir() for one in self.each)}

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
        """Whether the last stage starts from what this run's own Stage 1 made."""
        return self.last_stage == "stage2" and self.enabled("stage1")

    def enabled(self, stage: str) -> bool:
        """Return whether the recipe has this stage."""
        return as_map(self.recipe, stage).get("enabled", True) is not False

    def objective(self, stage: str) -> str:
        """Return what a stage optimises, in words, with what distinguishes it from its relatives."""
        settings = as_map(self.recipe, stage)
        if isinstance(terms := settings.get("objective"), list):
            return " + ".join(name for term in terms for name in as_map(term) if name != "weight")
        key = str(settings.get("objective", "?"))
        method = METHODS.installed(key)  # never a file that a stranger's run names
        title = key if method is None else method.title
        if key == "dpo_shift" and (weight := number(settings, "shift_weight")) is not None:
            return f"{title} {weight:g}"
        if key == "sft_c" and settings.get("regularizer", "nll_floor") != "nll_floor":
            return f"{title} ({settings['regularizer']})"
        return title

    @property
    def method(self) -> str:
        """The stages in words: "SFT-C → CW-DPO"."""
        return " → ".join(self.objective(s) for s in STAGES if self.enabled(s))

    def measure(self, when: str, name: str) -> float | None:
        """Return a figure of the summary (`cwdpo.probes.figures.EVALUATED`) of `base`, `before` or `after`."""
        return measured(as_map(self.summary, when), name)

    def start_digest(self) -> str | None:
        """Return the content hash of the model that the last stage started from; of several seeds, the first one's."""
        start = self.each[0].json(f"{self.last_stage}/done.json").get("start")
        return start if isinstance(start, str) else None


def measured(part: Mapping[str, Any], name: str) -> float | None:
    """Return a figure of a part of a summary, or of a row of the evaluation."""
    if name == "grounding":
        return number(part, name, "gap")
    if name.startswith("logp_"):
        return number(part, "logp", name.removeprefix("logp_"))
    value = part.get(name)
    return float(value) if isinstance(value, bool) else number(value)


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run: its files, by name."""

    run: RunRecord
    name: str

    def json(self, name: str) -> dict[str, Any]:
        """Return what a JSON file of the stage holds."""
        return self.run.json(f"{self.name}/{name}")

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return [r for r in self.run.rows(f"{self.name}/{name}") if number(r, "step") is not None]

    @cached_property
    def probes(self) -> list[dict[str, Any]]:
        """Rows of `probes.jsonl`."""
        return self._rows("probes.jsonl")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of `metrics.jsonl` that belong to the loss."""
        return [row for row in self._rows("metrics.jsonl") if "loss" in row]

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        """Rows of `probe_prompts.jsonl`."""
        return self.run.rows(f"{self.name}/probe_prompts.jsonl")

    @property
    def seeds(self) -> list[StageRecord]:
        """The same stage of each seed, where this is their mean."""
        return [one.stages[self.name] for one in self.run.seeds if self.name in one.stages]

    @property
    def own_figures(self) -> list[Figure]:
        """Figures of the user's that the probes read, as the run describes them."""
        found: list[Figure] = []
        for row in as_list(self.json("probe_start.json"), "figures"):
            name, title, unit = (str(as_map(row).get(key, "")) for key in ("name", "title", "unit"))
            if name and name not in FIGURES:
                found.append(Figure(name=name, title=title or name, unit=unit))
        return found

    @property
    def kinds(self) -> list[str]:
        """Kinds of response that the probes measured, in the order they are shown."""
        found = {kind for row in self.probes for kind in as_map(row, "kinds")}
        return [k for k in KINDS if k in found] + sorted(found - set(KINDS))

    def probe(self, *path: str) -> list[tuple[float, float]]:
        """Return (step, value) of a quantity in the probes, for instance `probe("kinds", "easy", "logp_mean")`."""
        return series_of(self.probes, *path)

    def metric(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of a logged quantity."""
        return series_of(self.metrics, name)

    def band(self, read: Callable[[StageRecord], Points]) -> list[tuple[float, float, float]]:
        """Return (step, lowest, highest) of a series over the seeds; nothing where there is one seed."""
        lines = [dict(read(seed)) for seed in self.seeds]
        shared = set(lines[0]).intersection(*lines[1:]) if lines else set[float]()
        return [(x, min(line[x] for line in lines), max(line[x] for line in lines)) for x in sorted(shared)]
