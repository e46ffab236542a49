"""Captions of many prompts or image files, in batches, kept as they come."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwdpo.data import DEFAULT_PROMPT, ImageLimits, check_image
from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import DataError, RunError
from cwdpo.evaluation.resumable_batches import kept_rows
from cwdpo.files import text_digest
from cwdpo.models.generation import generate
from cwdpo.models.identity import folder_digest
from cwdpo.processes import processes
from cwdpo.scenes import base_path
from cwdpo.scenes.grammar import PROMPT
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.open_model import open_model

__all__ = ["caption_groups", "caption_hypotheses", "caption_images", "captioner", "image_files"]

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def caption_groups(
    load: Callable[[], Any],
    encoder: PromptEncoder,
    groups: Sequence[PromptGroup],
    path: Path,
    **settings: Any,
) -> list[str]:
    """Return the likeliest answer to every prompt; see `caption_hypotheses`."""
    return [answers[0] for answers in caption_hypotheses(load, encoder, groups, path, **settings)]


def caption_hypotheses(
    load: Callable[[], Any],
    encoder: PromptEncoder,
    groups: Sequence[PromptGroup],
    path: Path,
    *,
    key: str,
    batch_size: int,
    max_new_tokens: int,
    beams: int = 1,
    progress: Callable[[int, int], None] | None = None,
    name: str = "",
) -> list[list[str]]:
    """Answer every prompt, greedily or by beam search; a killed call resumes where it stopped.

    Args:
        load: Loads the model; called only if something is left to do.
        encoder: Its prompt encoder.
        groups: The prompts.
        path: JSON-lines file of `{"id", "caption"}` rows, with the batch's key; `captions` too where there are beams.
        key: What the captions depend on beside the prompts (the model's content).
        batch_size: Prompts at once.
        max_new_tokens: Longest answer.
        beams: Width of the beam search, all of whose hypotheses are kept; 1 is greedy.
        progress: Called with the prompts done and their number.
        name: Under which other processes help, see `Processes.lead`.

    Returns:
        The answers to each prompt, the likeliest first.
    """
    answer = captioner(functools.cache(load), encoder, max_new_tokens, beams)
    settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "name": name}
    depends = str((batch_size, max_new_tokens) if beams == 1 else (batch_size, max_new_tokens, beams))
    rows = kept_rows(groups, path, answer, key=text_digest(key, depends), **settings)
    found = [row.get("captions", [row.get("caption")]) for row in rows]
    if not all(isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in found):
        raise RunError(f"{path}: is damaged (a row without caption); delete the file")
    return found


def captioner(
    model: Callable[[], Any], encoder: PromptEncoder, max_new_tokens: int, beams: int = 1
) -> Callable[[Sequence[PromptGroup]], list[dict[str, Any]]]:
    """Return what answers a batch of prompts, with the model that `model` gives, as rows for the file."""

    def answer(part: Sequence[PromptGroup]) -> list[dict[str, Any]]:
        found = generate(
            model(),
            encoder.tokenizer,
            lambda prompts: processes().each(lambda: encoder.prompt_inputs(prompts, padding=True)),
            part,
            max_new_tokens=max_new_tokens,
            num_beams=beams,
            num_return_sequences=beams,
        )
        return [{"caption": texts[0], **({"captions": texts} if beams > 1 else {})} for texts in found]

    return answer


def image_files(path: Path) -> list[Path]:
    """Return an image, or the images of a folder, sorted.

    Raises:
        DataError: There is none, or one cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path}: no such image or folder")
    inside = (file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS and file.is_file())
    files = sorted(inside) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: holds no image ({', '.join(sorted(_ENDINGS))})")
    for file in files:
        if reason := check_image(ImageRef(path=str(file)), ImageLimits()):
            raise DataError(reason)
    return files


def caption_images(
    model: str, files: Sequence[Path], kept: Path, *, prompt: str | None, batch_size: int, max_new_tokens: int
) -> list[str]:
    """Return a caption for each image.

    Args:
        model: Model directory or hub id.
        files: The images.
        kept: JSON-lines file of the captions that are done; a killed call resumes from it.
        prompt: The question.
        batch_size: Images at once.
        max_new_tokens: Longest caption, in tokens.

    Raises:
        UserError: The model or an image cannot be used.
    """
    question = prompt or (PROMPT if model in ("scenes", str(base_path())) else DEFAULT_PROMPT)
    groups = [
        PromptGroup(str(f), (ImageRef(path=str(f)),), (user_message(question),), (Response("", "none"),), origin=str(f))
        for f in files
    ]
    loaded, encoder = open_model(model)
    return caption_groups(
        lambda: loaded,
        encoder,
        groups,
        kept,
        key=folder_digest(base_path() if model == "scenes" else model) + question,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
