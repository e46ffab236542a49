"""95 % intervals by the bootstrap: the pictures are drawn again and again, with replacement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["bootstrap", "bootstrap_mean"]

_DRAWS = 1000
_BLOCK = 50


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
