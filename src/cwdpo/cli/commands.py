"""What the commands do, apart from parsing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from cwdpo.data import DEFAULT_PROMPT, DataSource, ImageLimits, check_image, detect_format, load_groups
from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import DataError, RecipeError
from cwdpo.files import write_jsonl, write_text
from cwdpo.outputs import output, require_replaceable
from cwdpo.recipe import (
    LoraSection,
    ModelSection,
    NegativesSection,
    Recipe,
    Stage1Section,
    Stage2Section,
)
from cwdpo.recipe.load_recipe import commented_yaml, load_recipe

__all__ = [
    "caption_images",
    "check_recipe",
    "inference_model",
    "score_file",
    "train_recipe",
    "write_recipe",
]

_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def write_recipe(model: str, data: str, out: Path, *, force: bool) -> None:
    """Write a commented recipe fitted to a model and a data set.

    Raises:
        RunError: A file is there already, or cannot be written.
        DataError: The data is not there, or of no known format.
    """
    recipe = Recipe.model_validate({"name": out.stem, "data": {"path": data}})
    if data != "scenes" and detect_format(data) in ("captions", "coco", "karpathy"):
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
    with output(out, "init", reads=[data], force=force) as draft:
        write_text(draft.file, commented_yaml(Recipe.model_validate(recipe.model_dump())))


def train_recipe(path: Path, overrides: list[str], out: Path | None) -> None:
    """Run a recipe and write its report."""
    from cwdpo.cli.console import RichReporter
    from cwdpo.cli.tables import summary_table
    from cwdpo.processes import processes
    from cwdpo.report import write_report
    from cwdpo.run import Run

    recipe = _recipe_of_all(path, overrides)
    folder = out or Path("runs") / path.stem
    page = folder / "report.html"
    if int(os.environ.get("RANK", "0")) == 0:
        require_replaceable(page, "report", force=None)
    with RichReporter() as reporter:
        summary = Run(folder, recipe, reporter).execute()
    if not processes().main:
        return
    if summary:
        summary_table(summary)
    with output(page, "report") as draft:
        write_report([folder], draft.file, title=recipe.name)
    typer.echo(f"report: {page}")
    typer.echo(f"model: {folder / ('stage2' if recipe.stage2.enabled else 'stage1') / 'model'}")


def _recipe_of_all(path: Path, overrides: list[str]) -> Recipe:
    """Load the recipe in every process of the run; a mistake is told once."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return load_recipe(path, overrides)
    from cwdpo.processes import join_processes

    return join_processes().each(lambda: load_recipe(path, overrides))


def check_recipe(path: Path, overrides: list[str]) -> None:
    """Validate recipe, data and model, and show what training will see."""
    from cwdpo.cli.inspect import inspect_recipe

    inspect_recipe(load_recipe(path, overrides), Console(width=120, highlight=False))


def _batches(groups: list[PromptGroup], size: int) -> Iterator[list[PromptGroup]]:
    iterator = iter(groups)
    while part := list(itertools.islice(iterator, size)):
        yield part


def inference_model(path: str, *, exact: bool = False) -> tuple[Any, Any]:
    """Load a model that is only read, with its prompt encoder; in bfloat16 on a GPU unless it must be `exact`."""
    from cwdpo.devices import device
    from cwdpo.models.loading import load_model, sequence_limit
    from cwdpo.models.processors import load_processor
    from cwdpo.run.model_checks import require_model, require_tokenizer
    from cwdpo.scenes import base_path
    from cwdpo.scoring.collator import PromptEncoder, require_template

    path = str(base_path()) if path == "scenes" else path
    require_model(path)
    where = device()
    dtype = "float32" if exact or where.type == "cpu" else "bfloat16"
    model = load_model(ModelSection(path=path, dtype=dtype), trainable=False)
    processor = load_processor(path)
    require_template(processor, path)
    require_tokenizer(processor, path)
    return model.to(where), PromptEncoder(processor, max_length=sequence_limit(model, None))


def score_file(
    model: str, data: Path, out: Path, *, reference: str | None, floor: float, tau: float, batch_size: int, force: bool
) -> int:
    """Write one line per response: id, role, text, logp_sum, logp_mean, tokens, entropy; with a reference Δ and w_c."""
    if tau <= 0:
        raise RecipeError(f"--tau {tau:g}: must be greater than 0; it is the width of the transition, in nats")
    with output(out, "score", reads=[data], force=force) as draft:
        return _score(model, data, draft.file, reference, floor, tau, batch_size)


def _score(model: str, data: Path, out: Path, reference: str | None, floor: float, tau: float, batch_size: int) -> int:
    from cwdpo.methods.cooling import cooling_weight
    from cwdpo.models.modes import inference
    from cwdpo.scoring.batch import Batch
    from cwdpo.scoring.logprobs import scores_from_logits
    from cwdpo.scoring.scorer import AutoScorer

    groups = list(load_groups(DataSource(path=data, require="response")).groups)
    policy, encoder = inference_model(model)
    other = inference_model(reference) if reference is not None else None
    scorer, rows = AutoScorer(), list[dict[str, Any]]()
    for part in _batches(groups, batch_size):
        batch = Batch(tuple(encoder.encode(g) for g in part))
        with inference(policy):
            scores = scores_from_logits(scorer(policy, batch))
            entropy = scores.mean_over_tokens(scores.entropy)
            columns = {"logp_sum": scores.logp_sum, "logp_mean": scores.logp_mean}
            columns |= {"tokens": scores.tokens, "entropy": entropy}
        if other is not None:
            theirs = Batch(tuple(other[1].encode(g) for g in part))
            with inference(other[0]):
                columns["delta"] = scores.logp_sum - scores_from_logits(scorer(other[0], theirs)).logp_sum
            columns["cooling_weight"] = cooling_weight(scores.logp_mean, floor=floor, tau=tau)
        texts = [r for g in part for r in g.responses]
        values = {name: column.tolist() for name, column in columns.items()}
        for i, (owner, response) in enumerate(zip(batch.owner, texts, strict=True)):
            row = {"id": part[owner].id, **response.to_json(), **{name: column[i] for name, column in values.items()}}
            rows.append({**row, "tokens": int(row["tokens"])})
    write_jsonl(out, rows)
    return len(rows)


def caption_images(
    model: str, images: Path, out: Path, *, prompt: str | None, batch_size: int, max_new_tokens: int, force: bool
) -> int:
    """Write one line per image: image, caption."""
    from cwdpo.evaluation.captioning import caption_groups
    from cwdpo.models.identity import folder_digest
    from cwdpo.scenes import base_path
    from cwdpo.scenes.grammar import PROMPT

    files = _image_files(images)
    question = prompt or (PROMPT if model in ("scenes", str(base_path())) else DEFAULT_PROMPT)
    groups = [
        PromptGroup(str(f), (ImageRef(path=str(f)),), (user_message(question),), (Response("", "none"),), origin=str(f))
        for f in files
    ]
    with output(out, "caption", reads=files, force=force) as draft:
        loaded, encoder = inference_model(model)
        captions = caption_groups(
            lambda: loaded,
            encoder,
            groups,
            draft.keep("captions.jsonl"),
            key=folder_digest(base_path() if model == "scenes" else model) + question,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
        rows = [{"image": str(f), "caption": text} for f, text in zip(files, captions, strict=True)]
        write_jsonl(draft.file, rows)
    return len(files)


def _image_files(images: Path) -> list[Path]:
    if not images.exists():
        raise DataError(f"{images}: no such image or folder")
    found = (
        [images]
        if images.is_file()
        else sorted(p for p in images.rglob("*") if p.suffix.lower() in _IMAGE_ENDINGS and p.is_file())
    )
    if not found:
        raise DataError(f"{images}: holds no image ({', '.join(sorted(_IMAGE_ENDINGS))})")
    for file in found:
        if reason := check_image(ImageRef(path=str(file)), ImageLimits()):
            raise DataError(reason)
    return found
