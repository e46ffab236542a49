"""`cwdpo report`: runs as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.terminal.options import Force

__all__ = ["report"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="One or more run directories.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    apart: Annotated[bool, typer.Option("--apart", help="Show every seed by itself.")] = False,
    force: Force = False,
) -> None:
    """Show one run, or several side by side, as one HTML file.

    Runs of one recipe with different seeds are shown as their mean and range; see --apart.
    """
    from cwdpo.outputs import output
    from cwdpo.report import write_report

    with output(out, "report", force=force) as draft:
        write_report(runs, draft.file, pool=not apart)
    typer.echo(f"report: {out}")
