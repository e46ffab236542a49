"""Commands that remake the paper's tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["register"]

_Scale = Literal["tiny", "small", "full"]
_What = Literal[
    "table1", "table2", "table3", "table4", "table5", "table6", "table7", "changing", "fig3", "fig4", "fig5", "fig6"
]


def reproduce(
    what: Annotated[_What, typer.Argument(help="A table or a figure of the paper.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every row, with seeds 0, 1, ….")] = 5,
    scale: Annotated[
        _Scale, typer.Option(help="Drawn pictures on a CPU, on a GPU, or the paper's own setting.")
    ] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Where runs and tables go; default runs/reproduce-SCALE.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to start from, in place of the scale's.")] = None,
    data: Annotated[str | None, typer.Option(help="Karpathy JSON, for scale full.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Runs at once; default as many as processors.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of every recipe."),
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Show which runs are missing, and stop.")] = False,
) -> None:
    """Remake a table or figure of the paper: run what is missing, write Markdown, CSV, LaTeX and JSON.

    Runs are shared among tables and kept: stopped at any moment, the same command goes on.

    [bold]cwdpo reproduce table1 --scale tiny --seeds 5[/]
    """
    from cwdpo.cli.console import quiet_libraries
    from cwdpo.cli.reproduction import remake

    quiet_libraries()
    folder = out or Path("runs") / f"reproduce-{scale}"
    remake(what, seeds, scale, folder, model=model, data=data, processes=processes, overrides=overrides or [], dry=dry)


def claims(
    runs: Annotated[
        Path | None, typer.Option("--from", help="Folder of `cwdpo reproduce`; default runs/reproduce-SCALE.")
    ] = None,
    scale: Annotated[_Scale, typer.Option(help="Its scale.")] = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds to take.")] = 5,
    out: Annotated[Path, typer.Option(help="Markdown file to write; the numbers go beside it as JSON.")] = Path(
        "claims.md"
    ),
) -> None:
    """Say which of the paper's claims hold, from the runs that `cwdpo reproduce` made: effects, intervals, verdicts.

    [bold]cwdpo claims --from runs/reproduce-tiny --out claims.md[/]
    """
    from cwdpo.cli.reproduction import settle_claims

    settle_claims(runs or Path("runs") / f"reproduce-{scale}", scale, seeds, out)


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command()(reproduce)
    app.command()(claims)
