"""The commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cwdpo._version import __version__
from cwdpo.cli import dynamics, evaluation, paper, planning
from cwdpo.cli.options import Command, Force, Overrides, RecipeFile

__all__ = ["app"]

app = typer.Typer(
    name="cwdpo",
    help="Align a vision-language model and see what the training does to it: SFT-C, then CW-DPO, with probes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
    epilog="Start with [bold]cwdpo demo[/]; your own data: [bold]cwdpo init[/], [bold]check[/], [bold]train[/].",
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Align a vision-language model and see what the training does to it."""


@app.command(cls=Command)
def demo(
    out: Annotated[Path, typer.Option(help="Where data, runs and the report go.")] = Path("cwdpo-demo"),
    seed: Annotated[int, typer.Option(help="Fixes everything.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Add DPO + NLL and fixed loser weights to the table.")] = False,
) -> None:
    """SFT → DPO beside SFT-C → CW-DPO on drawn pictures, from a model that ships with the package.

    Takes some minutes on two CPU cores, needs no network and no GPU. Ends with a table, OUT/summary.json and
    OUT/report.html. Stopped half-way, the same command goes on where it was.
    """
    from cwdpo.cli.console import RichReporter, quiet_libraries
    from cwdpo.cli.tables import demo_table
    from cwdpo.demo import run_demo
    from cwdpo.devices import stay_on_cpu

    stay_on_cpu()  # its figures are the same everywhere, and the model is too small to gain from a GPU
    quiet_libraries()
    with RichReporter() as reporter:
        result = run_demo(out, seed=seed, full=full, reporter=reporter, prepare=quiet_libraries)
    demo_table(result)
    typer.echo(f"report: {out / 'report.html'}")


@app.command(cls=Command)
def init(
    model: Annotated[str, typer.Option(help="Model directory or hub id.")] = "scenes",
    data: Annotated[str, typer.Option(help="Data file or folder.")] = "scenes",
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    force: Force = False,
) -> None:
    """Write a recipe with a comment on every field, fitted to a model and a data set.

    [bold]cwdpo init --model Qwen/Qwen2.5-VL-3B-Instruct --data train.jsonl[/]
    """
    from cwdpo.cli.commands import write_recipe

    write_recipe(model, data, out, force=force)
    typer.echo(f"wrote {out}; next: cwdpo check {out}")


@app.command(cls=Command)
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Validate recipe, data and model without training; show rows as the model will see them, lengths and memory."""
    from cwdpo.cli.commands import check_recipe
    from cwdpo.cli.console import quiet_libraries

    quiet_libraries()
    check_recipe(recipe, overrides or [])


@app.command(cls=Command)
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<name of the recipe file>.")] = None,
) -> None:
    """Run Algorithm 1: Stage 1, negatives, Stage 2, evaluation, report. Goes on by itself where it was stopped.

    [bold]cwdpo train recipe.yaml --set stage2.beta=0.2 --out runs/beta02[/]
    """
    from cwdpo.cli.commands import train_recipe
    from cwdpo.cli.console import quiet_libraries

    quiet_libraries()
    train_recipe(recipe, overrides or [], out)


@app.command(cls=Command)
def negatives(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: Annotated[Literal["stage1", "stage2"], typer.Option(help="Whose negatives.")] = "stage2",
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory; default runs/<name of the recipe file>-negatives."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="The page to write; default negatives/<stage>.html in the run directory."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Write them to FILE.jsonl (our format), FILE.trl.jsonl or FILE.parquet (TRL's)."),
    ] = None,
    scored: Annotated[int, typer.Option(min=0, help="Most prompts to score for ℓ̄ and w_c; 0 scores none.")] = 500,
    samples: Annotated[int, typer.Option(min=0, help="Prompts to look at.")] = 24,
    force: Force = False,
) -> None:
    """Make a stage's negatives and show what they are worth, without training.

    [bold]cwdpo negatives recipe.yaml --set negatives.stage2.beam=1 --html negatives.html[/]
    """
    from cwdpo.cli.console import quiet_libraries
    from cwdpo.cli.negatives import show_negatives

    quiet_libraries()
    shown: dict[str, Any] = {"html": html, "export": export, "scored": scored, "samples": samples, "force": force}
    show_negatives(recipe, overrides or [], stage=stage, out=out, **shown)


@app.command(cls=Command)
def benchmark(
    name: Annotated[Literal["mmmu", "mmbench"], typer.Argument(help="Which: MMMU validation, or MMBench 1.1.")],
    model: Annotated[str, typer.Option(help="Model directory or hub id.")],
    data: Annotated[Path, typer.Option(help="MMMU's folder of Parquet files, or MMBench's .tsv.")],
    out: Annotated[Path, typer.Option(help="JSON file to write: accuracies, categories, every answer.")],
    by: Annotated[
        Literal["generation", "likelihood"],
        typer.Option(help="Read the option from what the model writes, or take the letter that it finds likeliest."),
    ] = "generation",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions to ask, from the first on.")] = None,
    seed: Annotated[int, typer.Option(help="Of MMMU's draw where no option can be read.")] = 0,
    force: Force = False,
) -> None:
    """Ask a model the questions of MMMU or MMBench and score its answers. A killed call goes on where it was.

    [bold]cwdpo benchmark mmmu --model runs/a/stage2/model --data MMMU --out mmmu.json[/]
    """
    from cwdpo.cli.benchmark import run_benchmark
    from cwdpo.cli.console import quiet_libraries

    quiet_libraries()
    settings: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "force": force}
    run_benchmark(name, model, data, out, by=by, limit=limit, seed=seed, **settings)


@app.command(cls=Command)
def methods() -> None:
    """List the losses of both stages: formula, paper, settings with their defaults."""
    from cwdpo.cli.methods import methods_table

    methods_table()


@app.command(cls=Command)
def report(
    runs: Annotated[list[Path], typer.Argument(help="One or several run directories.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    apart: Annotated[bool, typer.Option("--apart", help="Show every seed by itself.")] = False,
    force: Force = False,
) -> None:
    """Show one run, or several side by side, as one HTML file.

    Runs of one recipe that differ in the seed are shown as their mean with the range they span; see --apart.
    """
    from cwdpo.outputs import output
    from cwdpo.report import write_report

    with output(out, "report", force=force) as draft:
        write_report(runs, draft.file, pool=not apart)
    typer.echo(f"report: {out}")


@app.command(cls=Command)
def score(
    model: Annotated[str, typer.Option(help="Model directory or hub id.")],
    data: Annotated[Path, typer.Option(help="Data file with responses, any known format.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write, one line a response.")],
    reference: Annotated[str | None, typer.Option(help="Reference model: adds delta and cooling_weight.")] = None,
    floor: Annotated[float, typer.Option(help="ℓ_floor of the cooling weight.")] = -3.0,
    tau: Annotated[float, typer.Option(help="τ of the cooling weight.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    force: Force = False,
) -> None:
    """Score every response under a model: log-probability, length, entropy; against a reference also Δ and w_c."""
    from cwdpo.cli.commands import score_file
    from cwdpo.cli.console import quiet_libraries

    quiet_libraries()
    settings: dict[str, Any] = {"floor": floor, "tau": tau, "batch_size": batch_size, "force": force}
    count = score_file(model, data, out, reference=reference, **settings)
    typer.echo(f"wrote {count} responses to {out}")


@app.command(cls=Command)
def caption(
    model: Annotated[str, typer.Option(help="Model directory or hub id.")],
    images: Annotated[Path, typer.Option(help="An image, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write, one line an image.")],
    prompt: Annotated[str | None, typer.Option(help="The question; default asks for one sentence.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption in tokens.")] = 48,
    force: Force = False,
) -> None:
    """Caption images. A killed call goes on where it was."""
    from cwdpo.cli.commands import caption_images
    from cwdpo.cli.console import quiet_libraries

    quiet_libraries()
    settings: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "force": force}
    count = caption_images(model, images, out, prompt=prompt, **settings)
    typer.echo(f"wrote {count} captions to {out}")


dynamics.register(app)
evaluation.register(app)
planning.register(app)
paper.register(app)
