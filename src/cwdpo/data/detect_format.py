"""Which format a path is in."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwdpo.data.formats.dataset_info import INFO_NAME, is_dataset_info, split_name
from cwdpo.data.formats.trl import is_packed
from cwdpo.data.tables.find_files import CSV_SUFFIXES, JSON_SUFFIXES, captions_csv, data_files
from cwdpo.data.tables.image_tar import tar_rows
from cwdpo.data.tables.parquet import arrow_rows, is_saved_dataset, load_saved, parquet_head
from cwdpo.data.tables.remote_files import copied, expand, file_name, is_remote
from cwdpo.data.tables.text_tables import caption_columns, is_there, json_document, json_rows, jsonl_rows, require_file
from cwdpo.errors import DataError, one_line

__all__ = ["FORMATS", "detect_format", "detect_tar", "format_of_row", "undecidable"]

FORMATS: Mapping[str, str] = {
    "cwdpo": "our rows (JSONL, JSON, Parquet): prompt, images, responses or chosen, rejected, negatives",
    "trl": "TRL preference rows: images, prompt, chosen, rejected",
    "llamafactory": "LLaMA-Factory: dataset_info.json, or conversations/instruction with chosen and rejected",
    "swift": "ms-swift: messages, rejected_response, images",
    "karpathy": "Karpathy's JSON (COCO, Flickr): images[] with filename, split, sentences[]",
    "coco": "COCO's captions JSON (COCO, NoCaps): images[] with file_name, annotations[] with caption",
    "captions": "a folder of images with a captions CSV",
}
"""Formats that are read, and how each is known."""


def detect_format(path: str | Path, split: str | None = None) -> str:
    """Return the name of the format of a file or folder.

    Args:
        path: As for `load_groups`.
        split: Which split of a folder to look at.

    Raises:
        DataError: Not there, or not one of the formats, which are then listed.
    """
    shards = expand(str(path))
    if shards is not None or is_remote(path):
        return _of_shard(shards[0] if shards is not None else str(path))
    place, name = split_name(str(path))
    if name is not None:
        return "llamafactory"
    if not is_there(place):
        raise DataError(f"{place}: no such file or folder")
    found = _of_folder(place, split) if place.is_dir() else _of_file(place)
    if found is None:
        raise undecidable(place)
    return found


def _of_shard(path: str) -> str:
    """Return the format of one file of several, or of one behind an address."""
    if path.endswith(".tar"):
        return detect_tar(path)
    if not is_remote(path):
        return detect_format(path)
    with tempfile.TemporaryDirectory() as folder, copied(path, Path(folder)) as copy:
        return detect_format(copy)


def detect_tar(path: str) -> str:
    """Return the format of the samples of a tar: that of the columns of their JSON, or captions."""
    rows = tar_rows([path])
    try:
        first = next((row.value for row in rows if isinstance(row.value, dict)), {})
    finally:
        rows.close()
    found = "captions" if "captions" in first and "image" in first else format_of_row(first)
    if found is None:
        seen = ", ".join(sorted(first)) or "nothing"
        raise undecidable(Path(file_name(path)), f" from its first sample, whose JSON has {seen}")
    return found


def format_of_row(row: Mapping[str, Any]) -> str | None:
    """Return the format whose columns a row has, or None."""
    columns = {key for key, value in row.items() if value is not None}
    if columns & {"responses", "negatives", "references", "facts"}:
        return "cwdpo"
    if "messages" in columns and "chosen" not in columns:
        return "swift"
    if {"conversations", "instruction"} & columns:
        return "llamafactory"
    if is_packed(row):
        return "trl"
    if {"chosen", "rejected"} <= columns:
        return (
            "llamafactory" if "messages" in columns else "trl" if not isinstance(row["rejected"], list) else _listy(row)
        )
    return "cwdpo" if {"prompt", "chosen"} <= columns else None


def _listy(row: Mapping[str, Any]) -> str:
    """Tell a list of rejected texts (ours) from a conversation (TRL's)."""
    return "cwdpo" if row["rejected"] and all(isinstance(item, str) for item in row["rejected"]) else "trl"


def undecidable(path: Path, seen: str = "") -> DataError:
    """Return the error that lists the formats."""
    known = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    return DataError(one_line(f"{path}: cannot tell its format{seen}; set data.format to one of: {known}", 900))


def _of_folder(path: Path, split: str | None) -> str | None:
    if is_saved_dataset(path):
        return _of_rows(path, arrow_rows(load_saved(path, split), path.name))
    info = path / INFO_NAME
    if info.is_file() and is_dataset_info(json_document(info)):
        return "llamafactory"
    if captions_csv(path) is not None:
        return "captions"
    files = data_files(path, split)
    return _of_file(files[0])


def _of_file(path: Path) -> str | None:
    require_file(path)
    if path.name == INFO_NAME and is_dataset_info(json_document(path)):
        return "llamafactory"
    if path.suffix == ".tar":
        return detect_tar(str(path))
    if path.suffix == ".parquet":
        return _of_rows(path, parquet_head(path))
    if path.suffix == ".jsonl":
        return _of_rows(path, jsonl_rows(path))
    if path.suffix in JSON_SUFFIXES:
        return _of_json(path)
    if path.suffix in CSV_SUFFIXES:
        caption_columns(path)
        return "captions"
    raise undecidable(path, f" from its suffix {path.suffix!r}")


def _of_json(path: Path) -> str | None:
    """Tell Karpathy's one object from a list of rows, reading the file once where it is large."""
    with path.open("rb") as handle:
        begins = handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if begins.startswith(b"{") and (found := _of_images(path)) is not None:
        return found
    return _of_rows(path, json_rows(path))


def _of_images(path: Path) -> str | None:
    """Return the format of a JSON file that is one object with `images`: with `sentences`, or `annotations` beside."""
    try:
        document = json_document(path)
    except DataError:
        return None  # JSON lines under the name .json, or broken: said elsewhere
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        return None
    if any(isinstance(item, dict) and "sentences" in item for item in images):
        return "karpathy"
    return "coco" if isinstance(document.get("annotations"), list) else None


def _of_rows(path: Path, rows: Any) -> str | None:
    """Return the format of the first rows that are objects."""
    seen: list[str] = []
    for row in rows:
        if isinstance(row.value, Mapping):
            found = format_of_row(row.value)
            if found is not None:
                return found
            seen = seen or sorted(map(str, row.value))
        if row.number >= 20:
            break
    raise undecidable(path, f" from the columns {', '.join(seen)}" if seen else ": no row of the first is an object")
