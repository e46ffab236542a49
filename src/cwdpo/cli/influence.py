"""`cwdpo influence`: what one gradient step does to other samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.terminal.options import Force

__all__ = ["influence"]


def influence(
    model: Annotated[str, typer.Argument(help="Model directory or hub id: where the step is taken.")],
    data: Annotated[Path, typer.Option(help="Data file; its first rows are the update samples.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write: a line a pair of samples.")],
    observe: Annotated[Path | None, typer.Option(help="Data file of the observed samples; default --data.")] = None,
    reference: Annotated[str | None, typer.Option(help="Reference of dpo and cw_dpo; default the model.")] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="Method of the step; repeat for several. Default sft, sft_c, dpo, cw_dpo.")
    ] = None,
    updates: Annotated[int, typer.Option(min=1, help="Update samples.")] = 3,
    observed: Annotated[int, typer.Option(min=1, help="Observed prompts.")] = 4,
    eta: Annotated[
        list[float] | None, typer.Option(help="Step size; repeat to see the prediction become exact.")
    ] = None,
    projections: Annotated[
        int, typer.Option(min=0, max=100_000, help="Random projections for the eNTK norm; 0 leaves it out.")
    ] = 0,
    freeze: Annotated[list[str] | None, typer.Option(help="Parts that take no step: vision, projector.")] = None,
    force: Force = False,
) -> None:
    """Measure how one step on a sample moves others, beside the prediction of the paper's Proposition 1.

    [bold]cwdpo influence runs/a/stage1/model --data train.jsonl --observe test.jsonl --out influence.jsonl[/]
    """
    from cwdpo.cli.terminal.console import quiet_libraries
    from cwdpo.files import write_jsonl
    from cwdpo.outputs import output
    from cwdpo.run.influence_rows import influence_rows

    quiet_libraries()
    with output(out, "influence", reads=[data, observe or data], force=force) as draft:
        rows = influence_rows(
            model,
            data,
            observe or data,
            reference=reference,
            methods=objective or ["sft", "sft_c", "dpo", "cw_dpo"],
            updates=updates,
            observed=observed,
            etas=eta or [1e-4],
            projections=projections,
            freeze=freeze or [],
        )
        write_jsonl(draft.file, rows)
    typer.echo(f"wrote {len(rows)} rows to {out}")
