"""`cwdpo export`: the model of a run, whole and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    out: Annotated[Path, typer.Option(help="Folder to write: new, empty, or that of an earlier export.")],
    stage: Annotated[
        Literal["stage1", "stage2"] | None, typer.Option(help="Whose model; default the last stage that is finished.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Type of the weights; default the base's own, or that of a model trained in full."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the run that logits are compared on.")] = 8,
    limit: Annotated[
        float | None, typer.Option(min=0, help="Largest difference of logits; default a small part of the largest.")
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also as GGUF, by llama.cpp's converter.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload to a new private repository of the hub.")
    ] = None,
) -> None:
    """Write a run's model whole (adapters merged), with processor and card, and check that it is the one trained.

    [bold]cwdpo export runs/a --out exported[/]
    """
    from cwdpo.cli.terminal.console import quiet_libraries
    from cwdpo.export.merge import export_model
    from cwdpo.export.publish import gguf_converter, require_pushable, write_gguf
    from cwdpo.export.publish import push as upload

    quiet_libraries()
    converter = gguf_converter() if gguf else None
    if push is not None:
        require_pushable(push)
    done = export_model(run, out, stage=stage, dtype=dtype, rows=rows, limit=limit)
    typer.echo(f"{done.source}: {done.sentence}")
    typer.echo(f"model: {out}")
    for path in write_gguf(out, converter) if converter else ():
        typer.echo(f"gguf: {path}")
    if push is not None:
        typer.echo(f"pushed: {upload(out, push)} (private)")
