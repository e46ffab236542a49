"""`cwdpo demo`: the paper's contrast on drawn pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, runs and report.")] = Path("cwdpo-demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of data, order and training.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Add DPO + NLL and fixed loser weights to the table.")] = False,
) -> None:
    """Compare SFT → DPO with SFT-C → CW-DPO on drawn pictures, from a model that ships with the package.

    Takes a few minutes on two CPU cores; needs no network and no GPU. Ends with a table, OUT/summary.json and
    OUT/report.html. Resumes when stopped.
    """
    from cwdpo.cli.terminal.console import RichReporter, quiet_libraries
    from cwdpo.cli.terminal.tables import demo_table
    from cwdpo.demo_runs import run_demo
    from cwdpo.devices import stay_on_cpu

    stay_on_cpu()  # its figures are the same everywhere, and the model is too small to gain from a GPU
    quiet_libraries()
    with RichReporter() as reporter:
        result = run_demo(out, seed=seed, full=full, reporter=reporter, prepare=quiet_libraries)
    demo_table(result)
    typer.echo(f"report: {out / 'report.html'}")
