"""The paper's figures 3 to 6, remade from run directories."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwdpo.errors import RunError

try:
    import matplotlib
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    raise RunError('the paper\'s figures need matplotlib, which is not installed; pip install "cwdpo[paper]"') from None

from cwdpo.files import write_bytes
from cwdpo.paper.figure_influence import figure5, figure6
from cwdpo.paper.figure_stages import figure3, figure4
from cwdpo.paper.figure_style import STYLE
from cwdpo.report.read_run import read_runs
from cwdpo.report.run_record import RunRecord

__all__ = ["draw_figure"]

_DRAWN_BY: dict[str, Callable[[Sequence[RunRecord]], tuple[Figure, list[str]]]] = {
    "fig3": figure3,
    "fig4": figure4,
    "fig5": figure5,
    "fig6": figure6,
}

_FORMATS = ("svg", "png", "pdf")


def draw_figure(name: str, runs: Sequence[Path], out: Path) -> list[str]:
    """Draw a figure of the paper from runs and write it.

    Args:
        name: Key of `FIGURES`.
        runs: Run directories; those with the same objectives count as seeds of one another.
        out: The file; its ending says the format. The same runs give the same bytes.

    Returns:
        What the figure shows, in sentences.

    Raises:
        RunError: The format is unknown, or the runs lack what the figure needs.
    """
    kind = out.suffix.removeprefix(".").lower()
    if kind not in _FORMATS:
        raise RunError(f"{out.name}: figures are written as .svg, .png or .pdf; change the ending of --out")
    settings: dict[Any, Any] = dict(STYLE)
    with matplotlib.rc_context(settings):
        figure, notes = _DRAWN_BY[name](read_runs(runs))
        content = io.BytesIO()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
        figure.savefig(content, format=kind, bbox_inches="tight", pad_inches=0.08, metadata=dates)
    write_bytes(out, content.getvalue())
    return notes
