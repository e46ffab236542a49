"""`cwdpo plan`: what a recipe needs on given GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cwdpo.cli.options import Command, Force

__all__ = ["register"]


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe, as `cwdpo init` writes it.")],
    gpus: Annotated[
        str, typer.Option(help="Which GPUs: 8xH100, A100-40, …, or figures: 8x80GB@400TFLOPs@2TB/s.")
    ] = "8xH100",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. stage2.beta=0.2."),
    ] = None,
    accelerate: Annotated[
        Path | None, typer.Option(help="Configuration of accelerate: who shares what; default DDP.")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=8, help="Rows of the data, where they are not at hand.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=2, help="Of a prompt's text, the template's too.")] = None,
    visual_tokens: Annotated[int | None, typer.Option(min=1, help="Of a prompt's pictures.")] = None,
    response_tokens: Annotated[int | None, typer.Option(min=1, help="Of a response.")] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the GPU's arithmetic that is reached; an assumption.")
    ] = 0.35,
    bandwidth: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of its memory's speed in generation; an assumption.")
    ] = 0.5,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    force: Force = False,
) -> None:
    """Say what a run takes before it is started: memory on a GPU, FLOPs, time and disk, and what to change.

    Needs neither weights nor a GPU, and downloads nothing.

    [bold]cwdpo plan recipes/qwen2.5-vl-7b.yaml --gpus 8xH100[/]
    """
    from cwdpo.cli.console import quiet_libraries
    from cwdpo.cli.plans import Asked, plan_recipe

    quiet_libraries()
    lengths: dict[str, Any] = {
        "prompts": prompts,
        "prompt_tokens": prompt_tokens,
        "visual_tokens": visual_tokens,
        "response_tokens": response_tokens,
    }
    asked = Asked(gpus, accelerate, lengths, {"utilisation": utilisation, "bandwidth": bandwidth})
    plan_recipe(recipe, overrides or [], asked, out, as_json=as_json, force=force)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Command)(plan)
