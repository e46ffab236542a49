"""`cwdpo negatives`: what a stage's negatives are worth, before a run is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cwdpo.cli.terminal.options import Force, Overrides, RecipeFile

if TYPE_CHECKING:
    from rich.console import Console

    from cwdpo.negatives.source_statistics import NegativeStatistics, ShownPrompt

__all__ = ["negatives"]

_SHOWN = 6
"""Samples in the terminal; the page has more."""


def negatives(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: Annotated[Literal["stage1", "stage2"], typer.Option(help="Stage whose negatives to build.")] = "stage2",
    out: Annotated[
        Path | None, typer.Option(help="Run directory; default runs/<name of the recipe file>-negatives.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Page to write; default negatives/<stage>.html in the run directory.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Also write them to FILE.jsonl (our format), FILE.trl.jsonl or FILE.parquet (TRL's)."),
    ] = None,
    scored: Annotated[int, typer.Option(min=0, help="Maximum number of prompts to score; 0 for none.")] = 500,
    samples: Annotated[int, typer.Option(min=0, help="Prompts to show on the page.")] = 24,
    force: Force = False,
) -> None:
    """Make a stage's negatives and show what they are worth, without training.

    [bold]cwdpo negatives recipe.yaml --set negatives.stage2.beam=1 --html negatives.html[/]
    """
    from cwdpo.cli.terminal.console import RichReporter, quiet_libraries, results
    from cwdpo.errors import RunError
    from cwdpo.negatives.write_pairs import export_negatives
    from cwdpo.outputs import output, require_replaceable
    from cwdpo.recipe.load_recipe import load_recipe
    from cwdpo.report.negatives_section import write_negatives_page
    from cwdpo.run.run_dir import RunDirectory
    from cwdpo.run.stage_negatives import negatives_of

    quiet_libraries()
    asked = load_recipe(recipe, overrides or [])
    folder = out or Path("runs") / f"{recipe.stem}-negatives"
    if export is not None and not export.name.endswith((".jsonl", ".parquet")):
        raise RunError(f"{export}: --export must end in .jsonl (our format), .trl.jsonl or .parquet (TRL's columns)")
    page = html or folder / "negatives" / f"{stage}.html"
    how: dict[str, Any] = {"by": "negatives", "reads": [recipe, *asked.files()], "force": force}
    for file in filter(None, (page, export)):
        require_replaceable(file, **how)
    with RichReporter() as reporter:
        run = RunDirectory(folder, asked, reporter)
        made = negatives_of(run, stage, scored=scored, samples=samples)
    console = results()
    _print_table(console, made.survey, f"{made.survey.prompts} prompts of {stage}", len(made.dropped))
    for sample in made.survey.samples[:_SHOWN]:
        _print_sample(console, sample)
    facts = [f"{stage} of {asked.name}", f"{made.survey.prompts} prompts", f"model {Path(made.model).name}"]
    with output(page, **how) as draft:
        title = f"Negatives of {asked.name}"
        write_negatives_page(made.survey, made.dropped, draft.file, title=title, facts=facts, folder=run.folder)
    typer.echo(f"page: {page}")
    typer.echo(f"negatives: {folder / 'negatives' / stage / 'groups.jsonl'}")
    if export is not None:
        with output(export, **how) as draft:
            count = export_negatives(made.groups, draft.file, export.with_name(f"{export.stem}_images"))
        typer.echo(f"export: {export} ({count} rows)")


def _print_table(console: Console, survey: NegativeStatistics, title: str, dropped: int) -> None:
    from cwdpo.cli.terminal.console import styled, table_of
    from cwdpo.report.negatives_section import sources_table

    block = sources_table(title, [(source, "") for source in survey.figures])
    table = table_of(title, "source", *(f">{cell.text}" for cell in block.header[1:]))
    for row in block.rows:
        table.add_row(*(cell.text for cell in row))
    console.print(table)
    notes = [f"{survey.scored} prompts scored, chosen ℓ̄ {survey.chosen_logp:.2f}"] if survey.chosen_logp else []
    notes += [f"{dropped} candidates dropped"] if dropped else []
    notes += [f"{survey.without} prompts without a negative"] if survey.without else []
    if notes:
        console.print(styled((", ".join(notes), "dim")))


def _print_sample(console: Console, sample: ShownPrompt) -> None:
    from cwdpo.cli.terminal.console import styled
    from cwdpo.negatives.text import word_diff

    console.print()
    console.print(styled((sample.group.chosen.text, "bold"), (f"  {sample.group.id}", "dim")))
    styles = {"same": "", "new": "bold red", "gone": "dim strike"}
    marks = {"same": "{}", "new": "{{+{}+}}", "gone": "[-{}-]"}
    for negative in sample.negatives:
        words: list[str | tuple[str, str]] = []
        for kind, text in word_diff(sample.group.chosen.text, negative.response.text):
            words += [(text if console.is_terminal else marks[kind].format(text), styles[kind]), " "]
        tags = [negative.response.source, negative.response.difficulty]
        if negative.logp_mean is not None:
            tags.append(f"ℓ̄ {negative.logp_mean:.2f} w_c {negative.cooling_weight:.2f}")
        if negative.right or negative.suspect:
            tags.append("is right" if negative.right else "may be right")
        console.print(styled("  ", *words, (f" {' · '.join(t for t in tags if t)}", "dim")))
