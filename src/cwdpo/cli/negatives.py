"""`cwdpo negatives`: what a stage's negatives are worth, before a run is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwdpo.errors import RunError
from cwdpo.negatives.source_statistics import NegativeStatistics, ShownPrompt
from cwdpo.negatives.text import word_diff
from cwdpo.outputs import output, require_replaceable
from cwdpo.recipe.load_recipe import load_recipe

__all__ = ["show_negatives", "sparkline"]

_LEVELS = "▁▂▃▄▅▆▇█"
_SHOWN = 6
"""Samples in the terminal; the page has more."""


def show_negatives(
    path: Path,
    overrides: list[str],
    *,
    stage: Literal["stage1", "stage2"],
    out: Path | None,
    html: Path | None,
    export: Path | None,
    scored: int,
    samples: int,
    force: bool,
) -> None:
    """Make a stage's negatives, print what is known of them, write the page and the export."""
    from cwdpo.cli.console import RichReporter
    from cwdpo.negatives.write_pairs import export_negatives
    from cwdpo.report.negatives_page import write_negatives_page
    from cwdpo.run.run_dir import RunDirectory
    from cwdpo.run.stage_negatives import negatives_of

    recipe = load_recipe(path, overrides)
    folder = out or Path("runs") / f"{path.stem}-negatives"
    if export is not None and not export.name.endswith((".jsonl", ".parquet")):
        raise RunError(f"{export}: --export must end in .jsonl (our format), .trl.jsonl or .parquet (TRL's columns)")
    page = html or folder / "negatives" / f"{stage}.html"
    reads = [path, *filter(None, (recipe.data.path, recipe.data.held_out_path, recipe.probes.path))]
    how: dict[str, Any] = {"by": "negatives", "reads": reads, "force": force}
    for file in filter(None, (page, export)):
        require_replaceable(file, **how)
    with RichReporter() as reporter:
        run = RunDirectory(folder, recipe, reporter)
        made = negatives_of(run, stage, scored=scored, samples=samples)
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=160, highlight=False)
    _print_table(console, made.survey, f"{made.survey.prompts} prompts of {stage}", len(made.dropped))
    for sample in made.survey.samples[:_SHOWN]:
        _print_sample(console, sample)
    facts = [f"{stage} of {recipe.name}", f"{made.survey.prompts} prompts", f"model {Path(made.model).name}"]
    with output(page, **how) as draft:
        title = f"Negatives of {recipe.name}"
        write_negatives_page(made.survey, made.dropped, draft.file, title=title, facts=facts, folder=run.folder)
    typer.echo(f"page: {page}")
    typer.echo(f"negatives: {folder / 'negatives' / stage / 'groups.jsonl'}")
    if export is not None:
        with output(export, **how) as draft:
            count = export_negatives(made.groups, draft.file, export.with_name(f"{export.stem}_images"))
        typer.echo(f"export: {export} ({count} rows)")


def sparkline(counts: list[int]) -> str:
    """Return a histogram as one character a bin; a dot is an empty bin."""
    most = max(counts, default=0)
    return "".join("·" if n == 0 else _LEVELS[min(7, n * 8 // (most + 1))] for n in counts)


def _print_table(console: Console, survey: NegativeStatistics, title: str, dropped: int) -> None:
    exact = any(f.right is not None for f in survey.figures)
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("source")
    names = ["used", "candidates", "dropped", "identical", "may be right"]
    names += ["is right", "precision", "recall"] if exact else []
    names += ["length", *(["ℓ̄", "w_c", "w_c 0…1"] if survey.scored else [])]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for f in survey.figures:
        row = [str(f.used), str(f.proposed), str(f.dropped), f"{f.identical:.1%}", f"{f.suspects:.1%}"]
        if exact:
            row += ["–" if v is None else f"{v:.1%}" for v in (f.right, f.precision, f.recall)]
        row.append(f"{f.length_ratio:.2f}")
        if survey.scored:
            row += ["–" if v is None else f"{v:.2f}" for v in (f.logp_mean, f.cooling_weight)]
            row.append(sparkline(f.histogram))
        table.add_row(f.name, *row)
    console.print(table)
    notes = [f"{survey.scored} prompts scored, chosen ℓ̄ {survey.chosen_logp:.2f}"] if survey.chosen_logp else []
    notes += [f"{dropped} candidates dropped"] if dropped else []
    notes += [f"{survey.without} prompts without a negative"] if survey.without else []
    if notes:
        console.print(Text(", ".join(notes), style="dim"))


def _print_sample(console: Console, sample: ShownPrompt) -> None:
    console.print()
    console.print(Text.assemble((sample.group.chosen.text, "bold"), (f"  {sample.group.id}", "dim")))
    for negative in sample.negatives:
        line = Text("  ")
        styles = {"same": "", "new": "bold red", "gone": "dim strike"}
        for kind, words in word_diff(sample.group.chosen.text, negative.response.text):
            shown = f"[-{words}-]" if kind == "gone" and not console.is_terminal else words
            line.append(shown if kind != "new" or console.is_terminal else f"{{+{words}+}}", style=styles[kind])
            line.append(" ")
        tags = [negative.response.source, negative.response.difficulty]
        if negative.logp_mean is not None:
            tags.append(f"ℓ̄ {negative.logp_mean:.2f} w_c {negative.cooling_weight:.2f}")
        if negative.right or negative.suspect:
            tags.append("is right" if negative.right else "may be right")
        line.append(f" {' · '.join(t for t in tags if t)}", style="dim")
        console.print(line)
