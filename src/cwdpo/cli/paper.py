"""`cwdpo paper`: remake the paper's tables and figures, and judge its claims."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cwdpo.cli.terminal.options import Command, Force
from cwdpo.outputs import OwnedFolder, output
from cwdpo.paper.paper_tables import COSTS, FIGURES, TABLES

__all__ = ["FORMER", "paper"]

paper = typer.Typer(
    help="Remake the paper's tables and figures over seeds, and say which of its claims hold.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

_Seeds = Annotated[int, typer.Option(min=1, help="Runs of every row, with seeds 0, 1, ….")]
_Scale = Annotated[
    Literal["tiny", "small", "full"],
    typer.Option(help="Drawn pictures on a CPU, more of them on a GPU, or the paper's own setting."),
]
_Runs = Annotated[Path | None, typer.Option("--out", help="Folder of runs and tables; default runs/reproduce-SCALE.")]
_Model = Annotated[str | None, typer.Option(help="Model to start from, in place of the scale's.")]
_Data = Annotated[str | None, typer.Option(help="Karpathy JSON, for --scale full.")]
_Processes = Annotated[int | None, typer.Option(min=1, help="Parallel runs; default one per processor.")]
_Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of every recipe.")
]
_Dry = Annotated[bool, typer.Option("--dry-run", help="List the missing runs and stop.")]


def _table(
    context: typer.Context,
    seeds: _Seeds = 5,
    scale: _Scale = "tiny",
    out: _Runs = None,
    model: _Model = None,
    data: _Data = None,
    processes: _Processes = None,
    overrides: _Overrides = None,
    dry: _Dry = False,
) -> None:
    """Make the missing runs, then write the table as Markdown, CSV, LaTeX and JSON. Resumes when stopped."""
    from rich.markdown import Markdown

    from cwdpo.cli.terminal.console import results
    from cwdpo.paper.make_tables import reproduce
    from cwdpo.paper.table_files import costs_markdown, markdown

    name = str(context.info_name)
    shop = _workshop(scale, out, model, data, overrides)
    if dry:
        return _list_missing(shop, name, seeds)
    result = _remade(reproduce, shop, name, seeds, processes)
    text = costs_markdown(result) if name == COSTS else markdown(result)
    results().print(Markdown(text))
    typer.echo(f"written: {shop.folder / f'{name}.md'}")


def _figure(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run directories to draw; default: make the paper's own runs.")
    ] = None,
    seeds: _Seeds = 5,
    scale: _Scale = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="With RUNS the file (.svg, .png, .pdf); without, the folder of runs.")
    ] = None,
    model: _Model = None,
    data: _Data = None,
    processes: _Processes = None,
    overrides: _Overrides = None,
    dry: _Dry = False,
    force: Force = False,
) -> None:
    """Draw the figure, from given runs or from the paper's own, which are made if missing.

    Runs with the same objectives count as seeds of one another and are drawn as a mean with its range.
    """
    from cwdpo.paper.make_tables import reproduce_figure
    from cwdpo.paper.paper_figures import draw_figure

    name = str(context.info_name)
    if runs:
        file = out or Path(f"{name}.svg")
        with output(file, "paper", force=force) as draft:
            notes = draw_figure(name, runs, draft.file)
    else:
        shop = _workshop(scale, out, model, data, overrides)
        if dry:
            return _list_missing(shop, name, seeds)
        file, notes = _remade(reproduce_figure, shop, name, seeds, processes)
    for note in notes:
        typer.echo(note)
    typer.echo(f"figure: {file}")


@paper.command(cls=Command)
def claims(
    runs: Annotated[
        Path | None, typer.Option("--from", help="Folder of the runs; default runs/reproduce-SCALE.")
    ] = None,
    scale: _Scale = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds to take.")] = 5,
    out: Annotated[Path, typer.Option(help="Markdown file to write; the numbers go beside it as JSON.")] = Path(
        "claims.md"
    ),
    force: Force = False,
) -> None:
    """Say which of the paper's claims hold on finished runs: effects, intervals, verdicts.

    [bold]cwdpo paper claims --from runs/reproduce-tiny --out claims.md[/]
    """
    from cwdpo.cli.terminal.console import results, table_of
    from cwdpo.errors import RunError
    from cwdpo.paper.claims_page import write_ledger
    from cwdpo.paper.judge_claims import MISSING, UNTESTED, ledger
    from cwdpo.paper.run_plan import Workshop
    from cwdpo.paper.sizes import SCALES

    folder = runs or _default_folder(scale)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; make the runs with `cwdpo paper table1 --out {folder}`")
    shop = Workshop(folder, SCALES[scale], None, "-")
    numbers = out.with_suffix(".json")
    if out == numbers:
        raise RunError(f"{out}: is where the numbers go; give the page a name that ends in .md")
    with output(out, "paper", force=force) as page, output(numbers, "paper", force=force) as found:
        rows = ledger(shop, range(seeds))
        if {row["verdict"] for row in rows} <= {MISSING, UNTESTED}:
            raise RunError(f"{folder}: holds no run that a claim needs; `cwdpo paper table1 --out {folder}` makes some")
        write_ledger(rows, shop, range(seeds), page.file, _asked())
        page.file.with_suffix(".json").replace(found.file)
    table = table_of("", "where", "claim", "verdict")
    for row in rows:
        table.add_row(row["where"], row["claim"], row["verdict"])
    results().print(table)
    typer.echo(f"written: {out}")


def _default_folder(scale: str) -> Path:
    return Path("runs") / f"reproduce-{scale}"


def _workshop(scale: str, out: Path | None, model: str | None, data: str | None, overrides: list[str] | None) -> Any:
    from cwdpo.cli.terminal.console import quiet_libraries
    from cwdpo.data import detect_format
    from cwdpo.errors import RecipeError
    from cwdpo.models.model_checks import require_model
    from cwdpo.paper.run_plan import Workshop
    from cwdpo.paper.sizes import SCALES

    quiet_libraries()
    size = SCALES[scale]
    if data is not None and size.train:
        raise RecipeError(f"--data {data}: --scale {scale} draws its own pictures; leave it out, or use --scale full")
    if data is not None:
        detect_format(data)
    if model not in (None, "scenes"):
        require_model(str(model))
    return Workshop(out or _default_folder(scale), size, model, data, tuple(overrides or ()))


def _list_missing(shop: Any, name: str, seeds: int) -> None:
    from cwdpo.paper.make_tables import still_to_run

    jobs = still_to_run(shop, name, range(seeds))
    for job in jobs:
        typer.echo(job.name)
    typer.echo(f"{len(jobs)} runs to make")


def _remade(make: Any, shop: Any, name: str, seeds: int, processes: int | None) -> Any:
    from cwdpo.cli.terminal.console import RichReporter, quiet_libraries
    from cwdpo.run import usable_cpus

    with OwnedFolder(shop.folder, "paper"), RichReporter() as reporter:
        return make(
            shop,
            name,
            range(seeds),
            processes=processes or usable_cpus(),
            reporter=reporter,
            command=_asked(),
            prepare=quiet_libraries,
        )


def _asked() -> str:
    """Return the command without the paths that are this machine's own."""
    words, kept = iter(sys.argv[1:]), ["cwdpo"]
    for word in words:
        if word in ("--out", "--from"):
            next(words, None)
        elif not word.startswith(("--out=", "--from=")):
            kept.append(word)
    return " ".join(kept)


for _name, _title in {**{t.name: t.title for t in TABLES.values()}, COSTS: "Cost of an update"}.items():
    paper.command(_name, cls=Command, short_help=_title)(_table)
for _name, _drawn in FIGURES.items():
    paper.command(_name, cls=Command, short_help=_drawn.title)(_figure)


def _forward(context: typer.Context) -> None:
    old = str(context.info_name)
    words = _RENAMED[old](context.args)
    typer.echo(f"note: `cwdpo {old}` is now `cwdpo paper {words[0] if words else ''}`", err=True)
    typer.main.get_command(paper).main(words, prog_name="cwdpo paper", standalone_mode=False)


_RENAMED: dict[str, Callable[[list[str]], list[str]]] = {
    "reproduce": lambda words: words,
    "claims": lambda words: ["claims", *words],
    "figure": lambda words: [f"fig{words[0]}", *words[1:]] if words and words[0].isdigit() else ["fig3", *words],
}
"""What the commands were called before, and the words of the new one."""

FORMER = dict.fromkeys(_RENAMED, _forward)
"""Commands by the names that they had before."""
