"""When to stop, decided from the probe readings alone: pure functions, the same live and afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwdpo.data.schema import CHOSEN

__all__ = ["Verdict", "follow", "signal_value", "watch"]


@dataclass(frozen=True)
class Verdict:
    """Where a signal stands.

    Attributes:
        best: Index of the best reading of a model that is not the start's; 0 while there is none.
        stop: Index of the reading at which patience ran out; None while it lasts.
    """

    best: int
    stop: int | None


def signal_value(row: Mapping[str, Any], signal: str) -> float:
    """Return a signal (`cwdpo.probes.figures.signals`) from a row of `probes.jsonl`; NaN where the row lacks it."""
    value = row["kinds"][CHOSEN]["logp_mean"] if signal == "chosen" else row.get(signal)
    return float(value) if value is not None else math.nan


def follow(rows: Sequence[Mapping[str, Any]], signal: str, *, higher: bool, patience: int, min_delta: float) -> Verdict:
    """Apply `watch` to the rows of `probes.jsonl`.

    Rows whose log-probabilities are all those of the start are of the start's weights (an update at learning rate 0, as
    the first one of a warm-up, leaves them alone): none of them is chosen.
    """
    moved = [any(values["delta_start"] != 0 for values in row["kinds"].values()) for row in rows]
    first = moved.index(True) if True in moved else len(rows)
    values = [signal_value(row, signal) for row in rows]
    return watch(values, higher=higher, patience=patience, min_delta=min_delta, first=first)


def watch(values: Sequence[float], *, higher: bool, patience: int, min_delta: float = 0.0, first: int = 1) -> Verdict:
    """Follow a signal from reading to reading.

    Args:
        values: The signal at every reading.
        higher: Whether higher is better.
        patience: Readings without an improvement after which to stop.
        min_delta: By how much a reading must be better than the best one to count as an improvement.
        first: Index of the first reading that may be chosen: those before it are of the start's weights.

    Returns:
        The best reading up to the stop, and the stop.

    Raises:
        ValueError: `patience` is below 1 or `min_delta` is negative.
    """
    if patience < 1 or min_delta < 0:
        raise ValueError(f"patience = {patience}, min_delta = {min_delta}: must be at least 1 and at least 0")
    best, sign = 0, 1 if higher else -1
    for i in range(first, len(values)):
        if best == 0 or sign * (values[i] - values[best]) > min_delta:
            best = i
        if i - best >= patience:
            return Verdict(best, i)
    return Verdict(best, None)
