"""When to stop, decided from the probe readings alone: pure functions, the same live and afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwdpo.data.schema import CHOSEN

__all__ = ["SIGNALS", "Verdict", "signal_value", "watch"]

SIGNALS = {"accuracy": True, "chosen": True, "ranking": True, "ece": False, "tv": False}
"""Signals and whether higher is better.

`accuracy`: share of gold tokens that are the argmax; `chosen`: log p per token of the chosen responses; `ranking`:
share of pairs in which the chosen response is likelier per token; `ece`: calibration error; `tv`: distance from the
start.
"""


@dataclass(frozen=True)
class Verdict:
    """Where a signal stands.

    Attributes:
        best: Index of the best reading after the start; 0 while there is none.
        stop: Index of the reading at which patience ran out; None while it lasts.
    """

    best: int
    stop: int | None


def signal_value(row: Mapping[str, Any], signal: str) -> float:
    """Return a signal from a row of `probes.jsonl`; NaN where the row lacks it.

    Raises:
        ValueError: The signal is unknown.
    """
    if signal not in SIGNALS:
        raise ValueError(f"signal = {signal!r}: must be one of {', '.join(SIGNALS)}")
    found = row["kinds"][CHOSEN]["logp_mean"] if signal == "chosen" else row.get(signal)
    return float(found) if found is not None else math.nan


def watch(values: Sequence[float], *, higher: bool, patience: int, min_delta: float = 0.0) -> Verdict:
    """Follow a signal from reading to reading.

    Args:
        values: The signal at every reading; the first is the start, which no later model is kept for.
        higher: Whether higher is better.
        patience: Readings without an improvement after which to stop.
        min_delta: By how much a reading must be better than the best one to count as an improvement.

    Returns:
        The best reading up to the stop, and the stop.

    Raises:
        ValueError: `patience` is below 1 or `min_delta` is negative.
    """
    if patience < 1 or min_delta < 0:
        raise ValueError(f"patience = {patience}, min_delta = {min_delta}: must be at least 1 and at least 0")
    best, sign = 0, 1 if higher else -1
    for i in range(1, len(values)):
        if best == 0 or sign * (values[i] - values[best]) > min_delta:
            best = i
        if i - best >= patience:
            return Verdict(best, i)
    return Verdict(best, None)
