"""Table 7: what an update costs, each method beside the one it is held against, in turns in one process."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cwdpo.files import read_json, write_json
from cwdpo.paper.arms import ARMS, STARTS
from cwdpo.paper.run_plan import Job, Workshop
from cwdpo.recipe import Recipe
from cwdpo.run import Run, Silent

__all__ = ["cost_table"]

_UPDATES, _REPEATS = 24, 7
_PAIRS = (("sft", "sft_c", "about 2×"), ("dpo", "cw_dpo", "1× + ε"))
"""What is held against what, and what the paper says of it."""


def cost_table(shop: Workshop) -> dict[str, Any]:
    """Return the rows of Table 7: processor seconds an update, and ratios taken turn by turn.

    Every turn is a run of some updates from the scale's own model, on one thread, without probes or evaluation. What
    comes before the second update is not counted. Turns are kept in `costs.json`: a stopped call resumes.
    """
    kept = shop.folder / "costs.json"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds: dict[str, list[float]] = {name: [] for pair in _PAIRS for name in pair[:2]}
        seconds |= read_json(kept) if kept.is_file() else {}
        for turn, name in itertools.product(range(_REPEATS), seconds):
            if len(seconds[name]) <= turn:
                seconds[name].append(_turn(shop, name))
                write_json(kept, seconds)
    finally:
        torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    for base, name, paper in _PAIRS:
        ratios = [b / a for a, b in zip(seconds[base], seconds[name], strict=True)]
        for entry, said, times in ((base, "1×", [1.0] * _REPEATS), (name, paper, ratios)):
            rows.append(
                {
                    "label": STARTS[entry].title if entry in STARTS else ARMS[entry].title,
                    "entry": entry,
                    "seconds": statistics.median(seconds[entry]),
                    "ratio": {"median": statistics.median(times), "least": min(times), "most": max(times)},
                    "paper": said,
                }
            )
    return {"name": "table7", "title": "Cost of an update", "repeats": _REPEATS, "updates": _UPDATES, "rows": rows}


def _turn(shop: Workshop, name: str) -> float:
    """Train some updates and return the processor seconds of one."""
    values = shop.recipe(Job(name, 0, None if name in STARTS else shop.scale.rate)).model_dump()
    values["model"]["path"] = shop.model or shop.scale.recipe["model"]["path"]
    values["evaluation"]["prompts"] = 0
    for stage in ("stage1", "stage2"):
        values[stage] |= {"max_steps": _UPDATES, "save_steps": 10 * _UPDATES, "log_steps": 1}
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        Run(Path(folder), Recipe.model_validate(values), clock).execute()
    return statistics.median(after - before for before, after in itertools.pairwise(clock.moments))


class _Clock(Silent):
    """Notes the processor time at the end of every update."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self._step = -1

    def beside(self, run: str, kind: str, *facts: Any) -> None:
        """Note it."""
        if kind == "training" and facts[0] is not None and facts[0].step > self._step:
            self._step = facts[0].step
            self.moments.append(time.process_time())
