"""Captions of image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cwdpo.data import DEFAULT_PROMPT, ImageLimits, check_image
from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import DataError
from cwdpo.evaluation.captioning import caption_groups
from cwdpo.models.identity import folder_digest
from cwdpo.scenes import base_path
from cwdpo.scenes.grammar import PROMPT
from cwdpo.scoring.open_model import open_model

__all__ = ["caption_images", "image_files"]

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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
