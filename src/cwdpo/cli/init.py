"""`cwdpo init`: a recipe to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwdpo.cli.terminal.options import Columns, Force, columns_of

if TYPE_CHECKING:
    from cwdpo.recipe import Recipe

__all__ = ["init"]


def init(
    model: Annotated[str, typer.Option(help="Model directory or hub id.")] = "scenes",
    data: Annotated[str, typer.Option(help="Data file or folder, or the id of a data set on the hub.")] = "scenes",
    columns: Columns = None,
    out: Annotated[Path, typer.Option(help="Recipe to write.")] = Path("recipe.yaml"),
    every_field: Annotated[bool, typer.Option("--all", help="Write every field with its full description.")] = False,
    force: Force = False,
) -> None:
    """Write a recipe fitted to a model and a data set: what is usually set, or with --all every field.

    [bold]cwdpo init --model Qwen/Qwen2.5-VL-3B-Instruct --data train.jsonl[/]
    """
    from cwdpo.files import write_text
    from cwdpo.outputs import output
    from cwdpo.recipe.commented_recipe import commented_yaml

    recipe = _fitted(out.stem, model, data, columns_of(columns))
    with output(out, "init", reads=[data], force=force) as draft:
        write_text(draft.file, commented_yaml(recipe, every_field=every_field))
    typer.echo(f"wrote {out}; next: cwdpo check {out}")


def _fitted(name: str, model: str, data: str, columns: dict[str, str]) -> Recipe:
    """Return a recipe for a model and a data set.

    Raises:
        DataError: The data is not there, or of no known format.
    """
    from cwdpo.data import detect_format
    from cwdpo.recipe import LoraSection, ModelSection, NegativesSection, Recipe, Stage1Section, Stage2Section

    recipe = Recipe.model_validate({"name": name, "data": {"path": data, "columns": columns}})
    if data != "scenes" and detect_format(data, None, columns) in ("captions", "coco", "karpathy"):
        # Captions come without negatives: most are the right ones with a fact changed, the rest those of other images.
        mixes = ({"dataset": 0, "perturb": share, "other": 1} for share in (1, 3))
        negatives = NegativesSection.model_validate(dict(zip(("stage1", "stage2"), mixes, strict=True)))
        recipe = recipe.model_copy(update={"negatives": negatives})
    if model != "scenes":
        update: dict[str, Any] = {
            "model": ModelSection(path=model, dtype="bfloat16", freeze=["vision"], lora=LoraSection()),
            "stage1": Stage1Section(learning_rate=1e-4),
            "stage2": Stage2Section(learning_rate=1e-5),
        }
        recipe = recipe.model_copy(update=update)
    else:
        stage: dict[str, Any] = {"learning_rate": 3e-4, "micro_batch_size": 32}
        recipe = recipe.model_copy(update={"stage1": Stage1Section(**stage), "stage2": Stage2Section(**stage)})
    return Recipe.model_validate(recipe.model_dump())
