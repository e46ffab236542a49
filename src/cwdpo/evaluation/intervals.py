"""95 % intervals: of a mean by Student's t, of other figures by the bootstrap over pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["bootstrap", "bootstrap_mean", "mean_interval"]

_DRAWS = 1000
_BLOCK = 50
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""0.975 quantile of Student's t for 1, 2, … degrees of freedom."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of some values and its 95 % interval (Student's t): of seeds, or of paired differences.

    Ends that are not known are NaN: one value has no interval.
    """
    n = len(values)
    mean = statistics.fmean(values) if n else math.nan
    if n < 2:
        return mean, math.nan, math.nan
    half = _student(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def _student(freedom: int) -> float:
    """Return the 0.975 quantile of Student's t; beyond the table by its expansion, right to three decimals."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def bootstrap(rows: Sequence[Sequence[float]], figure: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a figure that is made of sums over pictures.

    Args:
        rows: For each picture the numbers that are summed up, `[pictures, numbers]`.
        figure: From sums `[draws, numbers]` to the figure `[draws]`.

    Returns:
        Low and high end; the same rows give the same interval.
    """
    table = np.asarray(rows, dtype=float)
    generator, count = np.random.default_rng(0), len(table)
    drawn: list[np.ndarray] = []
    for _ in range(0, _DRAWS, _BLOCK):
        weights = generator.multinomial(count, np.full(count, 1 / count), size=_BLOCK)
        drawn.append(figure(weights @ table))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over pictures."""
    return bootstrap([[value] for value in values], lambda sums: sums[:, 0] / len(values))
