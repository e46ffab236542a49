"""What `cwdpo plan` does, apart from parsing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cwdpo.errors import ModelError, RecipeError
from cwdpo.files import write_json
from cwdpo.outputs import output, require_replaceable
from cwdpo.planning import (
    Assumptions,
    Layout,
    Planner,
    Remedy,
    Said,
    Step,
    model_of,
    parse_gpus,
    read_layout,
    read_rows,
    remedies,
    smallest_number,
)
from cwdpo.recipe import Recipe
from cwdpo.recipe.load_recipe import load_recipe

__all__ = ["Asked", "plan_recipe"]

GIB = 2**30
_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "activations": "activations",
    "pictures": "pictures",
    "logits": "logits",
    "cache": "KV cache",
    "reference": "reference",
    "communication": "sharing",
}


@dataclass(frozen=True)
class Asked:
    """What the command line says beside the recipe."""

    gpus: str
    accelerate: Path | None = None
    lengths: Mapping[str, int | None] = field(default_factory=dict[str, int | None])
    assume: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class _Plan:
    planner: Planner
    steps: Sequence[Step]
    remedies: Sequence[Remedy]
    after: float | None
    number: int | None

    @property
    def fits(self) -> bool:
        return max(step.gib for step in self.steps) <= self.planner.gpus.gpu.gib


def plan_recipe(
    path: Path, overrides: list[str], asked: Asked, out: Path | None, *, as_json: bool, force: bool
) -> None:
    """Plan a recipe; print tables or JSON, and write JSON where asked.

    Raises:
        UserError: The recipe, the GPUs, the model or the data cannot be used.
    """
    how: dict[str, Any] = {"by": "plan", "reads": [path, *filter(None, [asked.accelerate])], "force": force}
    if out is not None:
        require_replaceable(out, **how)
    gpus = parse_gpus(asked.gpus)
    layout = read_layout(asked.accelerate) if asked.accelerate is not None else Layout()
    recipe, config = model_of(load_recipe(path, overrides))
    _require_whole_weights(recipe, layout)
    rows = read_rows(recipe, config, Said(**asked.lengths))
    found = _plan(Planner(recipe, gpus, layout, rows, Assumptions(**asked.assume)))
    values = _to_json(found)
    if out is not None:
        with output(out, **how) as draft:
            write_json(draft.file, values)
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        _print(found, Console(width=140, highlight=False))


def _require_whole_weights(recipe: Recipe, layout: Layout) -> None:
    """Refuse what training refuses too."""
    asked = {"model.quantization": recipe.model.quantization is not None}
    for name in ("stage1", "stage2"):
        stage = getattr(recipe, name)
        asked[f"{name}.activation_offloading"] = stage.enabled and stage.activation_offloading
    for key, value in asked.items():
        if value and layout.kind != "ddp":
            raise RecipeError(
                f"{layout.source}: {key} needs whole weights, which FSDP takes apart; leave it out, or use DDP"
            )


def _plan(planner: Planner) -> _Plan:
    console = Console(stderr=True, highlight=False)

    def note(text: str) -> None:
        if console.is_terminal:
            console.print(f"[dim]{escape(text)}[/]")

    note("running the steps dry")
    steps = planner.steps()
    if not steps:
        raise ModelError("the recipe has no step that needs a GPU; enable a stage")
    room = planner.gpus.gpu.gib
    if max(step.gib for step in steps) <= room:
        return _Plan(planner, steps, (), None, None)
    found, after = remedies(planner, note)
    number = None if after is not None else smallest_number(planner)
    return _Plan(planner, steps, found, after, number)


def _to_json(found: _Plan) -> dict[str, Any]:
    planner = found.planner
    size, rows = planner.size(), planner.rows
    return {
        "model": {"path": planner.recipe.model.path, "type": planner.config.model_type, **asdict(size)},
        "gpus": {"count": planner.gpus.count, **asdict(planner.gpus.gpu)},
        "layout": asdict(planner.layout),
        "rows": {
            "source": rows.source,
            "counts": rows.counts,
            "typical": asdict(rows.typical),
            "largest": asdict(rows.largest),
        },
        "assumptions": {**asdict(planner.assume), **_reserves()},
        "steps": [
            {
                "name": step.name,
                "what": step.what,
                "gib": {kind: size / GIB for kind, size in step.memory.items()},
                "gib_with_reserve": step.gib,
                "fits": step.gib <= planner.gpus.gpu.gib,
                "flops": step.flops,
                "seconds": step.seconds,
            }
            for step in found.steps
        ],
        "fits": found.fits,
        "seconds": sum(step.seconds for step in found.steps),
        "disk": planner.disk(),
        "remedies": [asdict(remedy) for remedy in found.remedies],
        "gib_after_remedies": found.after,
        "gpus_enough": found.number,
    }


def _reserves() -> dict[str, float]:
    from cwdpo.planning.memory import FRAGMENTS, RESERVE

    return {"reserve_gib": RESERVE / GIB, "fragments": FRAGMENTS}


def _print(found: _Plan, console: Console) -> None:
    planner = found.planner
    size, rows, gpu = planner.size(), planner.rows, planner.gpus.gpu
    trained = f"{_count(size.trained)} trained" + (f", adapters {_count(size.adapters)}" if size.adapters else "")
    console.print(
        f"[bold]{escape(planner.recipe.model.path)}[/]  {planner.config.model_type}, {_count(size.weights)} weights, "
        f"{trained}"
    )
    console.print(
        f"[bold]{planner.gpus.count} × {gpu.name}[/]  {gpu.gib:g} GiB, {gpu.flops / 1e12:g} TFLOP/s, "
        f"{gpu.bandwidth / 1e12:.3g} TB/s each; {planner.layout.kind}"
        + (f" ({escape(planner.layout.source)})" if planner.layout.source else "")
    )
    typical, largest = rows.typical, rows.largest
    console.print(
        f"[bold]rows[/]  {escape(rows.source)}: {rows.counts['stage1']} for Stage 1, {rows.counts['stage2']} for "
        f"Stage 2\n      tokens (longest): prompt {typical.prompt:.0f} ({largest.prompt:.0f}), pictures "
        f"{typical.visual:.0f} ({largest.visual:.0f}), response {typical.response:.0f} ({largest.response:.0f})"
    )
    console.print(_steps_table(found))
    console.print(f"[dim]{escape(_assumptions(planner))}[/]")
    disk = planner.disk()
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in disk.items())
    console.print(f"[bold]disk[/]  {_gib(sum(disk.values()))}: {parts}")
    _verdict(found, console)


def _steps_table(found: _Plan) -> Table:
    kinds = [kind for kind in _PARTS if any(step.memory.get(kind, 0) >= 0.005 * GIB for step in found.steps)]
    table = Table(title="GiB on one GPU", title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("step")
    for kind in kinds:
        table.add_column(_PARTS[kind], justify="right", no_wrap=True)
    for heading in ("together", "PFLOP", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    room = found.planner.gpus.gpu.gib
    for step in found.steps:
        cells = [f"{step.memory.get(kind, 0) / GIB:.2f}" if step.memory.get(kind) else "–" for kind in kinds]
        style = "green" if step.gib <= room else "bold red"
        own = f"[{style}]{step.gib:.1f}[/]"
        table.add_row(
            f"{step.name}\n[dim]{step.what}[/]", *cells, own, f"{step.flops / 1e15:,.1f}", _time(step.seconds)
        )
    table.add_row(
        "all",
        *("" for _ in kinds),
        "",
        f"{sum(s.flops for s in found.steps) / 1e15:,.1f}",
        _time(sum(s.seconds for s in found.steps)),
    )
    return table


_FLEX = " flex_attention is planned as sdpa under a dense mask, which takes more memory and arithmetic."


def _assumptions(planner: Planner) -> str:
    a, reserved = planner.assume, _reserves()
    return (
        f"Assumed: {a.utilisation:.0%} of the arithmetic is reached, {a.bandwidth:.0%} of the memory's speed in "
        f"generation, {reserved['reserve_gib']:g} GiB for CUDA and libraries and {reserved['fragments']:.0%} for "
        "fragments (both in `together`). Memory is that of the longest rows, as many as fit a forward pass."
        + (_FLEX if planner.recipe.model.attention == "flex_attention" else "")
    )


def _verdict(found: _Plan, console: Console) -> None:
    planner, room = found.planner, found.planner.gpus.gpu.gib
    if found.fits:
        fullest = max(found.steps, key=lambda step: step.gib)
        console.print(f"[green]fits[/]: {fullest.name} is the fullest step, {fullest.gib:.1f} of {room:g} GiB")
        return
    console.print(f"[bold red]does not fit[/] into {room:g} GiB; what to change, cheapest first:")
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("", "change", "saves GiB, alone", "costs"):
        table.add_column(column, justify="right" if "GiB" in column else "left")
    for remedy in found.remedies:
        mark = "[green]●[/]" if remedy.needed else ""
        table.add_row(mark, escape(remedy.text), f"{remedy.saves:.1f}", escape(remedy.cost))
    console.print(table)
    if found.after is not None:
        console.print(f"[green]●[/] together are enough: {found.after:.1f} of {room:g} GiB")
    elif found.number is not None:
        r = planner.recipe
        given_up = ["model.quantization"] if r.model.quantization else []
        offloads = r.stage1.activation_offloading or r.stage2.activation_offloading
        given_up += ["activation_offloading"] if offloads else []
        as_it_is = f"without {' and '.join(given_up)}" if given_up else "as it is"
        console.print(
            f"not enough together; {found.number} × {planner.gpus.gpu.name} with FSDP2 hold the recipe {as_it_is}"
        )
    else:
        console.print("not enough together, on up to 64 such GPUs; take larger GPUs or a smaller model")


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:,.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
