"""`cwdpo check`: what a recipe will do, shown before it costs anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwdpo.cli.terminal.options import Overrides, RecipeFile

if TYPE_CHECKING:
    from rich.console import Console

    from cwdpo.data.schema import PromptGroup
    from cwdpo.recipe import Recipe, StageSection
    from cwdpo.scoring.batch import EncodedGroup

__all__ = ["check", "inspect_recipe"]

_SCENES = 64
_SHOWN = 64


def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Validate recipe, data and model without training; show rows as the model sees them, lengths and memory."""
    from cwdpo.cli.terminal.console import quiet_libraries, results
    from cwdpo.recipe.load_recipe import load_recipe

    quiet_libraries()
    inspect_recipe(load_recipe(recipe, overrides or []), results())


def inspect_recipe(recipe: Recipe, console: Console) -> None:
    """Print counts, three rows as the model sees them, token lengths, updates and memory; train nothing.

    Raises:
        UserError: What would stop the run, in one line.
    """
    import tempfile
    from itertools import islice

    from cwdpo.cli.terminal.console import styled
    from cwdpo.models.model_checks import require_model
    from cwdpo.models.quantized import require_bitsandbytes
    from cwdpo.run import Run
    from cwdpo.run.prepare_data import share_rows, source_of
    from cwdpo.run.probe_prompts import given_prompts
    from cwdpo.run.row_fit import row_fit
    from cwdpo.scenes.scene_rows import write_rows

    require_model(Run(Path(), recipe).model_path)
    require_bitsandbytes(recipe.model)
    given_prompts(recipe)
    for warning in recipe.warnings():
        console.print(styled(("warning:", "yellow"), f" {warning}"))
    d = recipe.data
    with tempfile.TemporaryDirectory() as folder:
        train, held_out = source_of(recipe, d.path), d.held_out
        if d.path == "scenes":
            write_rows(Path(folder), _SCENES, d.split_seed, "train")
            train, held_out = source_of(recipe, f"{folder}/train.jsonl", format="cwdpo"), min(held_out, _SCENES // 2)
        elif d.held_out_path is not None:
            held_out = source_of(recipe, d.held_out_path)
        run = Run(Path(folder) / "run", recipe)
        fit = None if d.path == "scenes" else row_fit(run)
        with share_rows(recipe, train, held_out, progress=lambda what, done, total: None, fit=fit) as shared:
            if d.path == "scenes":
                read = f"scenes: {d.size} pictures will be drawn; {_SCENES} looked at"
            else:
                rows, bad = shared.train, sum(1 for _ in shared.train.bad_rows())
                read = f"{d.path}: format {rows.format}, {rows.count} rows" + (f", {bad} set aside" if bad else "")
            console.print(styled(("data", "bold"), f"  {read}"))
            _counts(console, recipe, shared.roles)
            model = run.trainable(run.model_path)
            encoder = run.encoder(run.model_path, model)
            groups = list(islice(shared.train, _SHOWN))
            _memory(console, recipe, _rows(console, encoder, groups), shared.roles)
    console.print(styled(("ok", "green"), ": the recipe, the data and the model fit together"))


def _counts(console: Console, recipe: Recipe, parts: Mapping[str, Mapping[str, int]]) -> None:
    for name, roles in parts.items():
        stage: StageSection | None = getattr(recipe, name, None)
        prompts = roles["prompts"]
        held = ", ".join(f"{n} {role}" for role, n in roles.items() if role != "prompts") or "no response"
        text = f"  {name.replace('_', ' ')}: {prompts} prompts ({held})"
        if stage is not None and stage.enabled and recipe.data.path != "scenes":
            text += f", {stage.updates(prompts)} updates of {stage.batch_size} prompts at {stage.learning_rate:g}"
        console.print(text)


def _rows(console: Console, encoder: Any, groups: Sequence[PromptGroup]) -> list[EncodedGroup]:
    from cwdpo.cli.terminal.console import styled, table_of

    image, found = getattr(encoder.processor, "image_token", None), [encoder.encode(group) for group in groups]
    lengths = [(len(encoded.prefix_ids), len(r.ids)) for encoded in found for r in encoded.responses]
    for encoded in found[:3]:
        text = encoder.tokenizer.decode(encoded.prefix_ids)
        if image:
            count = text.count(image)
            text = text.replace(image * count, image, 1) if count else text
            head, _, tail = text.partition(image)
            text = f"{head}{image}×{count}{tail.replace(image, '').lstrip()}" if count else text
        console.print(styled(("row", "bold"), f"  {encoded.origin}"))
        console.print(styled(("  prompt", "dim"), f"    {text!r}"))
        for response in encoded.responses[:4]:
            tag = f"  {response.role}" + (f" ({response.difficulty})" if response.difficulty else "")
            decoded = repr(encoder.tokenizer.decode(response.ids))
            console.print(styled((tag, "dim"), f"  {decoded}  ", (f"{len(response.ids)} tokens", "dim")))
    table = table_of("", "tokens", ">least", ">median", ">most", style="dim")
    for name, values in (("prompt and image", [p for p, _ in lengths]), ("response", [r for _, r in lengths])):
        ordered = sorted(values)
        table.add_row(name, *(str(n) for n in (ordered[0], ordered[len(ordered) // 2], ordered[-1])))
    console.print(table)
    return found


def _memory(
    console: Console, recipe: Recipe, encoded: Sequence[EncodedGroup], roles: Mapping[str, Mapping[str, int]]
) -> None:
    """Print what an update of each stage holds on one device, as `cwdpo plan` counts it; longest rows of those seen."""
    from cwdpo.cli.terminal.console import styled, table_of
    from cwdpo.errors import ModelError
    from cwdpo.planning.data_shape import measured_rows
    from cwdpo.planning.gpus import GIB, Layout, parse_gpus
    from cwdpo.planning.meta_models import model_of
    from cwdpo.planning.planner import Planner

    asked, config = model_of(recipe)
    rows = measured_rows({name: part["prompts"] for name, part in roles.items()}, "rows", config, encoded)
    planner = Planner(asked, parse_gpus("H100"), Layout(), rows)  # bytes are the same on every device
    try:
        steps = [planner.training(name) for name in ("stage1", "stage2") if getattr(recipe, name).enabled]
    except ModelError as error:
        console.print(styled(("memory", "bold"), f"  not counted: {error}"))
        return
    size = planner.size()
    table = table_of("", "GiB of an update, on one device", *(f">{step.name}" for step in steps), style="dim")
    parts = dict.fromkeys(part for step in steps for part in step.memory)
    for part in parts:
        table.add_row(part, *(f"{step.memory.get(part, 0) / GIB:.3f}" for step in steps))
    totals = [f"{sum(step.memory.values()) / GIB:.3f}" for step in steps]
    table.add_row(*(styled((text, "bold")) for text in ("total", *totals)))
    console.print(table)
    console.print(styled((f"  {size.weights / 1e6:.1f} M weights, {size.trained / 1e6:.1f} M trained", "dim")))
    for step in steps:
        console.print(styled((f"  {step.name}: {step.what.partition(' updates of ')[2]}", "dim")))
