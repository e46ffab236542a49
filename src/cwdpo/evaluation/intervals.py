"""95 % intervals: Student's t for a mean, the bootstrap over pictures, Wilson's for a share of all or none.

An interval never has zero width: where values differ by no more than rounding, they say nothing of their spread, and
there is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "bootstrap",
    "bootstrap_mean",
    "interval_text",
    "mean_interval",
    "mean_row",
    "paired_share_interval",
    "share_interval",
]

_LEVEL = 0.95
_DRAWS, _BLOCK = 1000, 50
_Z = 1.959964
_ROUNDING = 1e-12
"""A spread below this part of the values is their rounding."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a mean and its interval by Student's t: of seeds, or of paired differences.

    Both ends are NaN where there is no interval: of fewer than two values, or of equal ones.
    """
    mean = statistics.fmean(values) if values else math.nan
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    if deviation <= _ROUNDING * max(map(abs, values), default=0.0):
        return mean, math.nan, math.nan
    from scipy.stats import t

    quantile = round(float(t.ppf((1 + _LEVEL) / 2, len(values) - 1)), 3)  # as printed tables have it
    half = quantile * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def mean_row(values: Sequence[float]) -> dict[str, float]:
    """Return `mean`, `low` and `high` of `mean_interval`, without the ends where there is no interval."""
    mean, low, high = mean_interval(values)
    return {"mean": mean} if math.isnan(low) else {"mean": mean, "low": low, "high": high}


def bootstrap(
    rows: Sequence[Sequence[float]], figure: Callable[[Sequence[np.ndarray]], np.ndarray]
) -> tuple[float, float] | None:
    """Return the percentile interval of a figure that is made of sums over pictures.

    Args:
        rows: For each picture the numbers that are summed up, `[pictures, numbers]`.
        figure: From the sums, one array `[draws]` for each number, to the figure `[draws]`.

    Returns:
        Low and high end, the same for the same rows; None where the draws do not differ.
    """
    if len(rows) < 2:
        return None
    from scipy.stats import bootstrap as resample

    drawn = resample(
        tuple(np.asarray(rows, dtype=float).T),
        lambda *columns, axis: figure([column.sum(axis) for column in columns]),
        n_resamples=_DRAWS,
        batch=_BLOCK,
        vectorized=True,
        paired=True,
        confidence_level=_LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = map(float, drawn.confidence_interval)
    return (low, high) if high - low > _ROUNDING * max(abs(low), abs(high)) else None


def bootstrap_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the interval of a mean over pictures by the bootstrap."""
    return bootstrap([[value] for value in values], lambda sums: sums[0] / len(values))


def share_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the interval of a share, of values between 0 and 1: Wilson's where all of them are 0, or all 1."""
    if values and (all(v == 0 for v in values) or all(v == 1 for v in values)):
        from scipy.stats import binomtest

        ends = binomtest(int(sum(values)), len(values)).proportion_ci(_LEVEL, method="wilson")
        return float(ends.low), float(ends.high)
    return bootstrap_mean(values)


def paired_share_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the interval of a difference of paired shares (Bonett & Price 2012): its width is never zero.

    Args:
        differences: Of each item, -1, 0 or 1.
    """
    n = len(differences) + 2
    gained, lost = ((sum(d == sign for d in differences) + 1) / n for sign in (1, -1))
    half = _Z * math.sqrt((gained + lost - (gained - lost) ** 2) / n)
    return max(-1.0, gained - lost - half), min(1.0, gained - lost + half)


def interval_text(row: Mapping[str, Any], form: str, scale: float = 1.0) -> str:
    """Return `low` and `high` of a row as text, each in a format such as `+.3f`; a dash where there is no interval."""
    if row.get("low") is None or row.get("high") is None:
        return "–"
    return f"[{scale * row['low']:{form}}, {scale * row['high']:{form}}]"
