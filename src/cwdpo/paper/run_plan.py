"""Which runs a table needs, and their recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cwdpo.errors import RecipeError
from cwdpo.files import read_json
from cwdpo.paper.arms import ARMS, BASE, STARTS
from cwdpo.paper.sizes import Scale
from cwdpo.recipe import Recipe
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.scenes.grammar import PROMPT

__all__ = ["TUNING_SEED", "Job", "Workshop"]

TUNING_SEED = 1000
"""Its pictures and runs choose the learning rates and appear in no table."""

_FOLLOWED = {"every": 10, "prompts": 256, "batch_size": 64, "influence": {"updates": 2, "observed": 3}}


@dataclass(frozen=True)
class Job:
    """One run: a start, or an arm at a learning rate, with a seed."""

    entry: str
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """Unique among all jobs, and a folder's name."""
        return f"seed-{self.seed}/{self.entry}" + (f"-{self.rate:g}" if self.rate is not None else "")


@dataclass(frozen=True)
class Workshop:
    """A folder in which a scale's runs are made.

    Attributes:
        folder: Holds data, runs and tables.
        scale: The size.
        model: Model to start from, in place of the scale's.
        data: Data file of a scale that does not draw its own.
        overrides: `section.key=value` for every recipe.
    """

    folder: Path
    scale: Scale
    model: str | None = None
    data: str | None = None
    overrides: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if not self.scale.train and not self.data:
            raise RecipeError(f"scale {self.scale.name} needs --data: a Karpathy JSON file (dataset_coco.json)")

    @cached_property
    def place(self) -> Path:
        """The folder's absolute path: runs start from models of other runs."""
        return self.folder.absolute()

    def run_folder(self, job: Job) -> Path:
        """Return the run directory of a job."""
        return self.place / job.name

    def data_folder(self, seed: int) -> Path:
        """Return where a seed's drawn pictures are."""
        return self.place / f"seed-{seed}" / "data"

    def summary(self, job: Job) -> dict[str, Any] | None:
        """What a run found, or None where it is not finished."""
        folder = self.run_folder(job) / "evaluation"
        return read_json(folder / "summary.json") if (folder / "done.json").is_file() else None

    def start_job(self, entry: str, seed: int) -> Job | None:
        """Return the run of a Stage 1 that an entry begins with, or shows; None for arms on the base."""
        if entry == BASE:
            return Job("sft", seed)  # any start has been held against the base
        start = entry if entry in STARTS else ARMS[entry].start
        return Job(start, seed) if start != BASE else None

    def job(self, entry: str, seed: int, rates: Mapping[str, float]) -> Job:
        """Return the run that stands behind an entry."""
        if entry == BASE:
            return Job("sft", seed)
        if entry in STARTS:
            return Job(entry, seed)
        return Job(entry, seed, rates.get(entry, self.scale.rate))

    def tuning_jobs(self, entries: Iterable[str]) -> list[Job]:
        """Return the runs that choose the learning rates of those entries that are tuned."""
        return [Job(e, TUNING_SEED, rate) for e in entries if e in ARMS and ARMS[e].tuned for rate in self.scale.rates]

    def recipe(self, job: Job) -> Recipe:
        """Return a run's recipe."""
        begun, arm = STARTS.get(job.entry), ARMS.get(job.entry)
        shared: dict[str, Any] = {name: dict(section) for name, section in self.scale.recipe.items()}
        model, negatives = shared["model"], shared["negatives"]
        entry = begun or ARMS[job.entry]
        if self.model is not None:
            model["path"] = self.model
        if entry.corrected:
            mix = negatives.get("stage2", {})
            writing = {key: mix[key] for key in ("max_new_tokens", "batch_size") if key in mix}
            negatives["correction"] = {"by": self.scale.correction, "model": model["path"], **writing}
        start = self.start_job(job.entry, job.seed)
        if arm is not None and start is not None:
            model["path"] = str(self.run_folder(start) / "stage1" / "model")
        own = arm.negatives if arm is not None else {}
        given = {} if "dataset" in own else self.scale.given  # an arm with sources of its own has no others
        mix = {**given, **negatives.get("stage2", {}), **own}
        negatives["stage2"] = mix
        stage2: dict[str, Any] = {**shared["stage2"], **(arm.stage2 if arm is not None else {})}
        if arm is not None:
            stage2["learning_rate"] = job.rate
        values = {
            "name": f"{entry.title} ({job.name})",
            "seed": job.seed,
            "model": model,
            "data": {**shared.get("data", {}), **self._data(job.seed), "split_seed": job.seed},
            "negatives": {**negatives, "seed": job.seed},
            "stage1": {**shared["stage1"], **(begun.stage1 if begun else {}), "enabled": begun is not None},
            "stage2": {**stage2, "enabled": arm is not None},
            "probes": _FOLLOWED if entry.followed else {"every": 0},
            "evaluation": {
                **shared["evaluation"],
                "prompts": self.scale.evaluated,
                "likelihoods": job.seed != TUNING_SEED,  # captions alone choose the rate
            },
        }
        return load_recipe(base=values, overrides=self.overrides)

    def _data(self, seed: int) -> dict[str, Any]:
        if not self.scale.train:
            return {"path": self.data, "held_out": self.scale.evaluated}
        folder = self.data_folder(seed)
        return {
            "path": str(folder / "train.jsonl"),
            "held_out_path": str(folder / "test.jsonl"),
            "format": "cwdpo",
            "prompt": PROMPT,
            "check_images": False,
        }
