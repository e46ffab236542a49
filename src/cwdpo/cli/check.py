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

__all__ = ["check", "inspect_recipe"]

_GIB = 2**30
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
    from cwdpo.scenes.scene_rows import write_rows

    require_model(Run(Path(), recipe).model_path)
    require_bitsandbytes(recipe.model)
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
        with share_rows(recipe, train, held_out, progress=lambda what, done, total: None) as shared:
            if d.path == "scenes":
                read = f"scenes: {d.size} pictures will be drawn; {_SCENES} looked at"
            else:
                rows, bad = shared.train, sum(1 for _ in shared.train.bad_rows())
                read = f"{d.path}: format {rows.format}, {rows.count} rows" + (f", {bad} set aside" if bad else "")
            console.print(styled(("data", "bold"), f"  {read}"))
            _counts(console, recipe, shared.roles)
            run = Run(Path(folder) / "run", recipe)
            model = run.trainable(run.model_path)
            encoder = run.encoder(run.model_path, model)
            groups = list(islice(shared.train, _SHOWN))
            _rows(console, encoder, groups)
            _memory(console, recipe, model, encoder, groups)
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


def _rows(console: Console, encoder: Any, groups: Sequence[PromptGroup]) -> None:
    from cwdpo.cli.terminal.console import styled, table_of

    image = getattr(encoder.processor, "image_token", None)
    lengths: list[tuple[int, int]] = []
    for index, group in enumerate(groups):
        encoded = encoder.encode(group)
        lengths += [(len(encoded.prefix_ids), len(r.ids)) for r in encoded.responses]
        if index >= 3:
            continue
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


def _memory(console: Console, recipe: Recipe, model: Any, encoder: Any, groups: Sequence[PromptGroup]) -> None:
    """Print the memory of a Stage 2 update; activations are measured on the first prompt, then scaled."""
    import torch

    from cwdpo.cli.terminal.console import styled, table_of
    from cwdpo.models.quantized import weight_count
    from cwdpo.scoring.batch import Batch
    from cwdpo.scoring.logprobs import scores_from_logits
    from cwdpo.scoring.scorer import AutoScorer

    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    total = sum(weight_count(p) for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    optimiser = 8 * sum(p.numel() for p in trained)
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    batch = Batch((encoder.encode(groups[0]),))
    scorer = AutoScorer(recipe.model.scorer)
    with torch.no_grad():
        scorer(model, batch)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        scores_from_logits(scorer(model, batch))
    per_response = sum(n for pointer, n in seen.items() if pointer not in own) / len(batch.responses)
    prompts = min(recipe.stage2.micro_batch_size, recipe.stage2.batch_size)
    activations = per_response * prompts * (1 + recipe.negatives.stage2.per_prompt)
    table = table_of("", "memory of an update, per device", ">GiB", style="dim")
    rows = {
        f"weights ({total / 1e6:.1f} M, {sum(p.numel() for p in trained) / 1e6:.1f} M trained)": weights,
        "gradients": gradients,
        "optimiser (AdamW)": optimiser,
        f"activations ({prompts} prompts at once, no checkpointing)": activations,
    }
    for name, size in rows.items():
        table.add_row(name, f"{size / _GIB:.3f}")
    table.add_row(*(styled((text, "bold")) for text in ("total", f"{sum(rows.values()) / _GIB:.3f}")))
    console.print(table)
