"""`cwdpo plan`: what a recipe needs on given GPUs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwdpo.cli.terminal.options import Force, Overrides, RecipeFile

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cwdpo.planning.plan_recipe import RecipePlan
    from cwdpo.planning.planner import Planner

__all__ = ["plan"]

GIB = 2**30
_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimizer",
    "activations": "activations",
    "pictures": "pictures",
    "logits": "logits",
    "cache": "KV cache",
    "reference": "reference",
    "communication": "gathering",
}


def plan(
    recipe: RecipeFile,
    gpus: Annotated[str, typer.Option(help="GPUs: 8xH100, A100-40, …, or numbers: 8x80GB@400TFLOPs@2TB/s.")] = "8xH100",
    overrides: Overrides = None,
    accelerate: Annotated[
        Path | None, typer.Option(help="Configuration of accelerate, for sharding; default DDP.")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=8, help="Rows of the data, if they are not at hand.")] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=2, max=10_000_000, help="Tokens of a prompt, template included.")
    ] = None,
    visual_tokens: Annotated[int | None, typer.Option(min=1, max=10_000_000, help="Visual tokens of a prompt.")] = None,
    response_tokens: Annotated[int | None, typer.Option(min=1, max=10_000_000, help="Tokens of a response.")] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the GPU's arithmetic that is reached; an assumption.")
    ] = 0.35,
    bandwidth: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of its memory's speed in generation; an assumption.")
    ] = 0.5,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    force: Force = False,
) -> None:
    """Estimate a run before it starts: memory on a GPU, FLOPs, time and disk, and what to change if it does not fit.

    Needs neither weights nor a GPU, and downloads nothing.

    [bold]cwdpo plan recipes/qwen2.5-vl-7b.yaml --gpus 8xH100[/]
    """
    import json

    from rich.console import Console

    from cwdpo.cli.terminal.console import quiet_libraries, results, styled
    from cwdpo.files import write_json
    from cwdpo.outputs import output
    from cwdpo.planning.data_shape import Said
    from cwdpo.planning.plan_recipe import plan_recipe
    from cwdpo.planning.planner import Assumptions
    from cwdpo.recipe.load_recipe import load_recipe

    quiet_libraries()
    stderr, reads = Console(stderr=True), [recipe, *([accelerate] if accelerate is not None else [])]
    with output(out, "plan", reads=reads, force=force) if out is not None else nullcontext() as draft:
        planned = plan_recipe(
            load_recipe(recipe, overrides or []),
            gpus,
            accelerate,
            said=Said(prompts, prompt_tokens, visual_tokens, response_tokens),
            assume=Assumptions(utilisation, bandwidth),
            note=lambda text: stderr.print(styled((text, "dim"))) if stderr.is_terminal else None,
        )
        values = planned.to_json()
        if draft is not None:
            write_json(draft.file, values)
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        _print(planned, results())


def _print(plan: RecipePlan, console: Console) -> None:
    from cwdpo.cli.terminal.console import styled

    planner = plan.planner
    size, rows, gpu, layout = planner.size(), planner.rows, planner.gpus.gpu, planner.layout
    trained = f"{_count(size.trained)} trained" + (f", adapters {_count(size.adapters)}" if size.adapters else "")
    disk, typical, largest = planner.disk(), rows.typical, rows.largest
    lines = {
        planner.recipe.model.path: f"{planner.config.model_type}, {_count(size.weights)} weights, {trained}",
        f"{planner.gpus.count} × {gpu.name}": f"{gpu.gib:g} GiB, {gpu.flops / 1e12:g} TFLOP/s, "
        f"{gpu.bandwidth / 1e12:.3g} TB/s each; {layout.kind}" + (f" ({layout.source})" if layout.source else ""),
        "rows": f"{rows.source}: {rows.counts['stage1']} for Stage 1, {rows.counts['stage2']} for "
        f"Stage 2\n      tokens (longest): prompt {typical.prompt:.0f} ({largest.prompt:.0f}), pictures "
        f"{typical.visual:.0f} ({largest.visual:.0f}), response {typical.response:.0f} ({largest.response:.0f})",
    }
    for name, text in lines.items():
        console.print(styled((name, "bold"), f"  {text}"))
    console.print(_steps_table(plan))
    console.print(styled((_assumptions(planner), "dim")))
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in disk.items())
    console.print(styled(("disk", "bold"), f"  {_gib(sum(disk.values()))}: {parts}"))
    _verdict(plan, console)


def _steps_table(plan: RecipePlan) -> Table:
    from cwdpo.cli.terminal.console import styled, table_of

    kinds = [kind for kind in _PARTS if any(step.memory.get(kind, 0) >= 0.005 * GIB for step in plan.steps)]
    headings = (f">{heading}" for heading in (*(_PARTS[kind] for kind in kinds), "total", "PFLOP", "time"))
    table = table_of("GiB on one GPU", "step", *headings)
    for step in plan.steps:
        cells = [f"{step.memory.get(kind, 0) / GIB:.2f}" if step.memory.get(kind) else "–" for kind in kinds]
        total = styled((f"{step.gib:.1f}", "green" if step.gib <= plan.planner.gpus.gpu.gib else "bold red"))
        name = styled(f"{step.name}\n", (step.what, "dim"))
        table.add_row(name, *cells, total, f"{step.flops / 1e15:,.1f}", _time(step.seconds))
    flops, seconds = (sum(values) for values in zip(*((step.flops, step.seconds) for step in plan.steps), strict=True))
    table.add_row("all", *[""] * (len(kinds) + 1), f"{flops / 1e15:,.1f}", _time(seconds))
    return table


def _assumptions(planner: Planner) -> str:
    from cwdpo.planning.planner import FRAGMENTS, RESERVE

    a, flex = planner.assume, planner.recipe.model.attention == "flex_attention"
    return (
        f"Assumed: {a.utilisation:.0%} of the arithmetic is reached, {a.bandwidth:.0%} of the memory's speed in "
        f"generation, {RESERVE:g} GiB for CUDA and libraries and {FRAGMENTS:.0%} for "
        "fragmentation (both in the total). Memory is that of the longest rows, as many as one forward pass takes."
        + (" flex_attention is planned as sdpa under a dense mask, which takes more of both." if flex else "")
    )


def _verdict(plan: RecipePlan, console: Console) -> None:
    from cwdpo.cli.terminal.console import styled, table_of

    planner, room = plan.planner, plan.planner.gpus.gpu.gib
    if plan.fits:
        fullest = max(plan.steps, key=lambda step: step.gib)
        said = f": {fullest.name} is the fullest step, {fullest.gib:.1f} of {room:g} GiB"
        console.print(styled(("fits", "green"), said))
        return
    console.print(styled(("does not fit", "bold red"), f" into {room:g} GiB; what to change, cheapest first:"))
    table = table_of("", "", "change", ">saves GiB, alone", "costs")
    for remedy in plan.remedies:
        table.add_row(styled(("●", "green")) if remedy.needed else "", remedy.text, f"{remedy.saves:.1f}", remedy.cost)
    console.print(table)
    if plan.after is not None:
        console.print(styled(("●", "green"), f" together are enough: {plan.after:.1f} of {room:g} GiB"))
    elif plan.number is not None:
        r = planner.recipe
        offloads = r.stage1.activation_offloading or r.stage2.activation_offloading
        given_up = [*(["model.quantization"] if r.model.quantization else []), *(["activation_offloading"] * offloads)]
        as_it_is = f"without {' and '.join(given_up)}" if given_up else "as it is"
        name = planner.gpus.gpu.name
        console.print(f"not enough together; {plan.number} × {name} with FSDP2 hold the recipe {as_it_is}")
    else:
        console.print("not enough together, on up to 64 such GPUs; use larger GPUs or a smaller model")


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:,.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
