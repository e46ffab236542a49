"""How the figures look: one palette that colour-blind readers can tell apart, quiet axes, labels instead of legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

__all__ = ["COLOURS", "STYLE", "Line", "band", "clean", "colour_of", "seeds_of"]

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, in the order in which methods take them: vermilion, blue, green, purple, orange, sky."""

STYLE: Mapping[str, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "svg.hashsalt": "cwdpo",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
"""Settings of matplotlib."""

Line = Sequence[tuple[float, float]]
"""(update, value), in order."""


def colour_of(index: int) -> str:
    """Return the colour of the n-th method."""
    return COLOURS[index % len(COLOURS)]


def clean(axes: Axes, title: str, *, x: str = "", y: str = "") -> None:
    """Name a panel and its axes."""
    axes.set_title(title, loc="left")
    if x:
        axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)


def seeds_of(lines: Sequence[Line]) -> tuple[list[float], list[list[float]]]:
    """Return the updates that all lines have, and each line's values there."""
    known = [dict(line) for line in lines if line]
    if not known:
        return [], []
    shared = sorted(set(known[0]).intersection(*known[1:]))
    return shared, [[one[x] for x in shared] for one in known]


def band(axes: Axes, lines: Sequence[Line], *, colour: str, label: str, dashes: bool = False) -> None:
    """Draw seeds of one method as their mean, and the range they span as a band."""
    x, rows = seeds_of(lines)
    if not x:
        return
    values = np.asarray(rows, dtype=float)
    axes.plot(x, values.mean(0), color=colour, label=label, linestyle=(0, (4, 2)) if dashes else "-")
    if len(rows) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
