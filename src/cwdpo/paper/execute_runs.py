"""Run what tables need and is not there yet; choose learning rates."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

from cwdpo.errors import RunError
from cwdpo.files import write_text
from cwdpo.paper.arms import ARMS
from cwdpo.paper.run_plan import TUNING_SEED, Job, Workshop
from cwdpo.run import Reporter, run_side_by_side
from cwdpo.scenes.scene_rows import write_rows

__all__ = ["choose_rates", "draw_pictures", "execute", "missing"]


_PROBED = 256
"""Held-out pictures that runs are probed on, beside those that are evaluated."""


def missing(shop: Workshop, jobs: Iterable[Job]) -> list[Job]:
    """Return the runs that are not finished, those that others start from before them, each once."""
    wanted: dict[str, Job] = {}
    for job in jobs:
        start = shop.start_job(job.entry, job.seed)
        for one in (start, job):
            if one is not None and shop.summary(one) is None:
                wanted[one.name] = one
    return sorted(wanted.values(), key=lambda job: job.rate is not None)


def execute(
    shop: Workshop,
    jobs: Sequence[Job],
    *,
    processes: int,
    reporter: Reporter,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Execute runs: first the starts, then what begins with them.

    Raises:
        UserError: A run asks for something to be fixed. What is done stays done.
    """
    draw_pictures(shop, dict.fromkeys(job.seed for job in jobs), reporter)
    for wave in ([j for j in jobs if j.rate is None], [j for j in jobs if j.rate is not None]):
        if shop.scale.launched:
            for job in wave:
                _launch(shop, job)
        else:
            runs = {job.name: (shop.run_folder(job), shop.recipe(job)) for job in wave}
            run_side_by_side(runs, processes=processes, reporter=reporter, prepare=prepare)


def draw_pictures(shop: Workshop, seeds: Iterable[int], reporter: Reporter) -> None:
    """Draw the pictures of seeds that have none yet, where the scale draws its own."""
    for seed in seeds if shop.scale.train else ():
        folder = shop.data_folder(seed)
        if not (folder / "test.jsonl").is_file():
            held_out = shop.scale.evaluated + _PROBED
            reporter.step("data", f"drawing {shop.scale.train + held_out} pictures for seed {seed}")
            write_rows(folder, shop.scale.train, seed, "train")
            write_rows(folder, held_out, seed, "test")


def _launch(shop: Workshop, job: Job) -> None:
    """Run a job as a user would, over all the GPUs that accelerate knows of."""
    folder = shop.run_folder(job)
    recipe = folder.with_name(f"{folder.name}.yaml")
    write_text(recipe, shop.recipe(job).to_yaml())
    command = ["accelerate", "launch", "-m", "cwdpo", "train", str(recipe), "--out", str(folder)]
    code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if code:
        raise RunError(f"{folder}: `{' '.join(command)}` ended with code {code}; the same command resumes from here")


def choose_rates(shop: Workshop, entries: Iterable[str]) -> dict[str, float]:
    """Return the learning rate of every tuned entry, as the tuning seed has it.

    The one with most right captions, or the best CIDEr where that is not known. Every method has the same budget: each
    rate of the scale once.
    """
    found: dict[str, float] = {}
    for entry in entries:
        if entry not in ARMS or not ARMS[entry].tuned:
            continue
        scores: dict[float, tuple[float, float]] = {}
        for rate in shop.scale.rates:
            summary = shop.summary(Job(entry, TUNING_SEED, rate))
            if summary is not None:
                after = summary["after"]
                scores[rate] = (after.get("correct", 0.0), after.get("cider", 0.0))
        if scores:
            found[entry] = max(scores, key=lambda rate: scores[rate])
    return found
