"""Commands that look at what training does: probes, compare, influence."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cwdpo.cli.options import Command, Force

__all__ = ["register"]


class Objective(StrEnum):
    """The loss of an influence step."""

    sft = "sft"
    sft_c = "sft_c"
    dpo = "dpo"
    cw_dpo = "cw_dpo"


def probes(
    recipe: Annotated[Path, typer.Argument(help="A recipe; its section probes says which kinds of response.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write, for probes.path.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. probes.prompts=128."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory to make it in; default runs/<name of the recipe file>-probes."),
    ] = None,
    force: Force = False,
) -> None:
    """Build a probe set from held-out rows: fixed prompts, each with many kinds of response, pinned by a hash.

    [bold]cwdpo probes recipe.yaml --set probes.kinds=[own,chosen_paraphrase,random] --out probes.jsonl[/]
    """
    from cwdpo.cli.console import quiet_libraries
    from cwdpo.cli.looking import build_probes

    quiet_libraries()
    build_probes(recipe, overrides or [], run or Path("runs") / f"{recipe.stem}-probes", out, force=force)


def compare(
    checkpoint_a: Annotated[str, typer.Argument(help="Model directory or hub id: the one to compare with.")],
    checkpoint_b: Annotated[str, typer.Argument(help="Model directory or hub id: the one that is compared.")],
    data: Annotated[Path, typer.Option(help="Data file with responses, any known format.")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write, with reliability and top tokens.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Rows of the file to use, from the first on.")] = 256,
    samples: Annotated[int, typer.Option(min=0, help="Prompts whose likeliest tokens are shown.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    force: Force = False,
) -> None:
    """Compare two checkpoints on the same responses: TV, JS, entropy, calibration, log p by kind with intervals.

    [bold]cwdpo compare runs/a/stage1/model runs/a/stage2/model --data test.jsonl --out shift.json[/]
    """
    from cwdpo.cli.console import quiet_libraries
    from cwdpo.cli.looking import compare_checkpoints

    quiet_libraries()
    settings: dict[str, Any] = {"prompts": prompts, "samples": samples, "batch_size": batch_size, "force": force}
    compare_checkpoints(checkpoint_a, checkpoint_b, data, out, **settings)


def influence(
    model: Annotated[str, typer.Argument(help="Model directory or hub id: where the step is taken.")],
    data: Annotated[Path, typer.Option(help="Data file; its first rows are the update samples.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write: a line a pair of samples.")],
    observe: Annotated[Path | None, typer.Option(help="Data file of the observed samples; default --data.")] = None,
    reference: Annotated[str | None, typer.Option(help="Reference of dpo and cw_dpo; default the model.")] = None,
    objective: Annotated[list[Objective] | None, typer.Option(help="Loss of the step; repeat for several.")] = None,
    updates: Annotated[int, typer.Option(min=1, help="Update samples.")] = 3,
    observed: Annotated[int, typer.Option(min=1, help="Observed prompts.")] = 4,
    eta: Annotated[
        list[float] | None, typer.Option(help="Step size; repeat to see the prediction become exact.")
    ] = None,
    projections: Annotated[int, typer.Option(min=0, help="Random projections for the eNTK norm; 0 leaves it out.")] = 0,
    freeze: Annotated[list[str] | None, typer.Option(help="Parts that take no step: vision, projector.")] = None,
    force: Force = False,
) -> None:
    """Measure how one step on a sample moves others, beside the prediction of the paper's Proposition 1.

    [bold]cwdpo influence runs/a/stage1/model --data train.jsonl --observe test.jsonl --out influence.jsonl[/]
    """
    from cwdpo.cli.console import quiet_libraries
    from cwdpo.cli.looking import influence_file

    quiet_libraries()
    count = influence_file(
        model,
        data,
        out,
        observe=observe,
        reference=reference,
        objectives=[o.value for o in objective or list(Objective)],
        updates=updates,
        observed=observed,
        etas=eta or [1e-4],
        projections=projections,
        freeze=freeze or [],
        force=force,
    )
    typer.echo(f"wrote {count} rows to {out}")


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(cls=Command)(probes)
    app.command(cls=Command)(compare)
    app.command(cls=Command)(influence)
