"""`cwdpo train`: a recipe, run from start to end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.terminal.options import Overrides, RecipeFile

__all__ = ["train"]


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<name of the recipe file>.")] = None,
) -> None:
    """Run Algorithm 1: Stage 1, negatives, Stage 2, evaluation, report. Resumes when stopped.

    [bold]cwdpo train recipe.yaml --set stage2.beta=0.2 --out runs/beta02[/]
    """
    from cwdpo.cli.terminal.console import RichReporter, quiet_libraries
    from cwdpo.cli.terminal.tables import summary_table
    from cwdpo.outputs import output, require_replaceable
    from cwdpo.processes import join_processes, processes
    from cwdpo.recipe.load_recipe import load_recipe
    from cwdpo.report import write_report
    from cwdpo.report.read_run import read_runs
    from cwdpo.report.verdict import describe_run
    from cwdpo.run import Run

    quiet_libraries()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        asked = load_recipe(recipe, overrides or [])
    else:  # every process loads it, one of them tells a mistake
        asked = join_processes().each(lambda: load_recipe(recipe, overrides or []))
    folder = out or Path("runs") / recipe.stem
    page = folder / "report.html"
    processes().lead(lambda: require_replaceable(page, "report", force=None))
    with RichReporter() as reporter:
        summary = Run(folder, asked, reporter).execute()
    if not processes().main:
        return
    if summary:
        if (verdict := describe_run(read_runs([folder])[0])) is not None:
            typer.echo(verdict.sentence)
        summary_table(summary)
    with output(page, "report") as draft:
        write_report([folder], draft.file, title=asked.name)
    typer.echo(f"report: {page}")
    typer.echo(f"model: {folder / ('stage2' if asked.stage2.enabled else 'stage1') / 'model'}")
