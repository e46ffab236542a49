"""What is added up between two logged rows, over all processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from cwdpo.objectives.objective import Tally
from cwdpo.processes import Processes

__all__ = ["Meter", "add_up", "means_over", "totals_over"]


class Meter:
    """Adds up what objectives tell of their micro-batches, until it is logged.

    Args:
        team: The processes that train together.
    """

    def __init__(self, team: Processes) -> None:
        self._team, self._tally = team, Tally()

    def merge(self, tally: Tally) -> None:
        """Add what one update told."""
        self._tally.merge(tally)

    def empty(self) -> dict[str, float]:
        """Return the means of what was added up, over all processes, and reset."""
        tally, self._tally = self._tally, Tally()
        return means_over(self._team, tally)

    def state(self) -> dict[str, dict[str, float]]:
        """Return what was added up, over all processes, in JSON's types."""
        sums, counts = totals_over(self._team, self._tally)
        return {"sums": sums, "counts": counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned; by one process only, since the next row adds up over all."""
        self._tally.sums = {name: torch.tensor(s, dtype=torch.float64) for name, s in state["sums"].items()}
        self._tally.counts = state["counts"]


def totals_over(team: Processes, tally: Tally) -> tuple[dict[str, float], dict[str, float]]:
    """Return the sums and the counts of a tally over all processes."""
    mine = ({name: float(total) for name, total in tally.sums.items()}, tally.counts)
    sums, counts = (add_up(parts) for parts in zip(*team.gather(mine), strict=True))
    return sums, counts


def means_over(team: Processes, tally: Tally) -> dict[str, float]:
    """Return the means of a tally over all processes."""
    sums, counts = totals_over(team, tally)
    return {name: sums[name] / counts[name] for name in sorted(sums)}


def add_up(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums of several mappings, name by name."""
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
