"""What `cwdpo reproduce` does, apart from parsing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from cwdpo.cli.commands import require_writable
from cwdpo.cli.console import RichReporter, quiet_libraries
from cwdpo.errors import RunError
from cwdpo.paper import COSTS, FIGURES, reproduce, reproduce_figure, still_to_run
from cwdpo.paper.claims_page import write_ledger
from cwdpo.paper.judge_claims import ledger
from cwdpo.paper.run_plan import Workshop
from cwdpo.paper.sizes import SCALES
from cwdpo.paper.table_files import costs_markdown, markdown
from cwdpo.run import usable_cpus

__all__ = ["remake", "settle_claims"]


def remake(
    what: str,
    seeds: int,
    scale: str,
    out: Path,
    *,
    model: str | None,
    data: str | None,
    processes: int | None,
    overrides: Sequence[str],
    dry: bool,
) -> None:
    """Remake a table or a figure, and show it."""
    shop = Workshop(out, SCALES[scale], model, data, tuple(overrides))
    wanted = range(seeds)
    if dry:
        jobs = still_to_run(shop, what, wanted)
        for job in jobs:
            typer.echo(job.name)
        typer.echo(f"{len(jobs)} runs to make")
        return
    count = processes or usable_cpus()
    with RichReporter() as reporter:
        command = _asked()
        if what in FIGURES:
            file, notes = reproduce_figure(
                shop, what, wanted, processes=count, reporter=reporter, command=command, prepare=quiet_libraries
            )
        else:
            result = reproduce(
                shop, what, wanted, processes=count, reporter=reporter, command=command, prepare=quiet_libraries
            )
            file, notes = out / f"{what}.md", []
            Console(width=160, highlight=False).print(
                Markdown(costs_markdown(result) if what == COSTS else markdown(result))
            )
    for note in notes:
        typer.echo(note)
    typer.echo(f"written: {file}")


def settle_claims(runs: Path, scale: str, seeds: int, out: Path) -> None:
    """Write the claims ledger and show it."""
    require_writable(out)
    if not runs.is_dir():
        raise RunError(f"{runs}: no such folder; make the runs with `cwdpo reproduce table1 --out {runs}`")
    shop = Workshop(runs, SCALES[scale], data="-")
    rows = ledger(shop, range(seeds))
    write_ledger(rows, shop, range(seeds), out, _asked())
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in ("where", "claim", "verdict"):
        table.add_column(name, no_wrap=name != "claim")
    for row in rows:
        table.add_row(row["where"], row["claim"], row["verdict"])
    Console(width=130, highlight=False).print(table)
    typer.echo(f"written: {out}")


def _asked() -> str:
    """Return the command without the places that are this machine's own."""
    words, kept = iter(sys.argv[1:]), ["cwdpo"]
    for word in words:
        if word in ("--out", "--from"):
            next(words, None)
        elif not word.startswith(("--out=", "--from=")):
            kept.append(word)
    return " ".join(kept)
