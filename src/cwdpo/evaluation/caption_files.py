"""Captions that somebody wrote, from a file: which caption belongs to which picture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from cwdpo.data.schema import PromptGroup
from cwdpo.data.tables.text_tables import json_rows, jsonl_rows
from cwdpo.errors import DataError

__all__ = ["read_captions"]

_IDS = ("image_id", "id", "image", "file_name", "filename")
"""In this order: beside `image_id`, `id` is the caption's own."""
_COCO = re.compile(r"(?:^|_)0*(\d+)$")
"""The picture's number in `COCO_val2014_000000404464`."""


def read_captions(path: Path, groups: Sequence[PromptGroup]) -> list[list[str]]:
    """Return the captions of some prompts from a file of captions.

    Args:
        path: JSON lines or a JSON list of `{id or image_id or image, caption}`, as `cwdpo evaluate`, `cwdpo caption`
            and COCO's results are; `captions`, a list, where a picture has several, the best first.
        groups: The prompts. A row belongs to the one whose id, image path, file name, or number in COCO's file name it
            names.

    Returns:
        For each prompt its captions.

    Raises:
        DataError: The file cannot be read, a prompt has no caption in it, or prompts have unequal numbers of captions.
    """
    exact: dict[str, list[str]] = {}
    loose: dict[str, list[str] | None] = {}
    for row in jsonl_rows(path) if path.suffix == ".jsonl" else json_rows(path):
        name, texts = _read_row(row.value, f"{path}:{row.number}", row.error)
        if name in exact:
            raise DataError(f"{path}:{row.number}: a second caption of {name}; give several as a list under captions")
        exact[name] = texts
        for alias in {PurePath(name).name, PurePath(name).stem}:
            loose[alias] = None if alias in loose else texts  # two files of one name are told apart by their folders
    found = [
        next((texts for known in (exact, loose) for a in _aliases(g) if (texts := known.get(a)) is not None), None)
        for g in groups
    ]
    missing = [group.id for group, hit in zip(groups, found, strict=True) if hit is None]
    if missing:
        raise DataError(
            f"{path}: no caption of {len(missing)} of the {len(groups)} pictures, the first is {missing[0]}; "
            "rows need id, image or image_id as the data has it"
        )
    captions = [hit for hit in found if hit is not None]
    if len({len(texts) for texts in captions}) > 1:
        raise DataError(f"{path}: pictures have unequal numbers of captions")
    return captions


def _read_row(row: Any, where: str, error: Exception | None) -> tuple[str, list[str]]:
    if error is not None or not isinstance(row, Mapping):
        raise DataError(f"{where}: {error or 'a row must be an object'}")
    name = next((row[key] for key in _IDS if row.get(key) is not None), None)
    texts: list[Any] = row["captions"] if isinstance(row.get("captions"), list) else [row.get("caption")]
    if not isinstance(name, (str, int)) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: a row needs {', '.join(_IDS[:3])} or the like, and caption or captions as text")
    return str(name), texts


def _aliases(group: PromptGroup) -> Iterator[str]:
    yield group.id
    path = group.images[0].path if len(group.images) == 1 else None
    if path is not None:
        yield from (path, PurePath(path).name, PurePath(path).stem)
        number = _COCO.search(PurePath(path).stem)
        if number is not None:
            yield number[1]
