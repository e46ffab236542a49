"""A path and its format, opened: raw rows, and the reader that understands them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from cwdpo.data.detect_format import FORMATS, detect_format, detect_tar
from cwdpo.data.formats.captions import CaptionChoice, read_captioned, read_coco, read_karpathy
from cwdpo.data.formats.dataset_info import find_entry, split_name
from cwdpo.data.formats.llamafactory import read_llamafactory
from cwdpo.data.formats.native import read_native
from cwdpo.data.formats.swift import read_swift
from cwdpo.data.formats.trl import read_trl
from cwdpo.data.own_reader import own_reader
from cwdpo.data.row_context import RowContext
from cwdpo.data.schema import PromptGroup
from cwdpo.data.tables.find_files import captions_csv, data_files, image_folder
from cwdpo.data.tables.image_tar import tar_rows
from cwdpo.data.tables.parquet import arrow_rows, is_saved_dataset, load_parquet, load_saved
from cwdpo.data.tables.raw_row import RawRow, RawTable
from cwdpo.data.tables.remote_files import expand, is_remote
from cwdpo.data.tables.text_tables import (
    ROW_LIMIT,
    caption_rows,
    is_there,
    json_document,
    json_rows,
    jsonl_rows,
    require_file,
)
from cwdpo.errors import DataError
from cwdpo.plugins import user_file

__all__ = ["RowReader", "open_source", "row_reader", "shards_of"]

RowReader = Callable[[Mapping[str, Any], RowContext], list[PromptGroup]]
"""Turns one raw row into its groups, or raises `RowError`."""

_TRAIN = ("train", "restval")
_SAMPLES = 20


def row_reader(name: str) -> RowReader:
    """Return the reader of rows that stand alone (a Python list, a `datasets.Dataset`)."""
    readers: dict[str, RowReader] = {
        "cwdpo": read_native,
        "trl": read_trl,
        "swift": read_swift,
        "llamafactory": read_llamafactory,
    }
    if user_file(name) is not None:
        return own_reader(name)
    if name not in readers:
        raise DataError(f"format = {name!r}: must be one of {', '.join(readers)}")
    return readers[name]


def open_source(
    path: str | Path,
    name: str,
    split: str | None,
    choice: CaptionChoice,
    cache: Path | None = None,
    row_limit: int = ROW_LIMIT,
) -> tuple[str, RawTable, RowReader]:
    """Return the format, the rows and their reader. Rows are read as they are asked for.

    Args:
        path: File or folder; `dataset_info.json:name` for LLaMA-Factory.
        name: One of `FORMATS`, `auto`, or `my_rows.py:read`, a reader of the user's own.
        split: Which split; None is `train` where there are several (Karpathy's `restval` belongs to it), and `all`
            is every image of a Karpathy file.
        choice: How captions become answers.
        cache: Folder for the Arrow copy of Parquet files; None: the cache of `datasets`.
        row_limit: Bytes of the longest line of JSON.

    Raises:
        DataError: Not there, empty, or not in that format.
    """
    if name != "auto" and name not in FORMATS and user_file(name) is None:
        raise DataError(f"data.format = {name!r}: must be auto or one of {', '.join(FORMATS)}")
    files = shards_of(path)
    if files is not None:
        return _shards(str(path), files, name, choice, cache, row_limit)
    place, entry = split_name(str(path))
    if not is_there(place):
        raise DataError(f"{place}: no such file or folder")
    found = detect_format(path, split) if name == "auto" else name
    if found == "karpathy":
        return found, _karpathy(place, split), partial(read_karpathy, choice=choice)
    if found == "coco":
        return found, _coco(place), partial(read_coco, choice=choice)
    if found == "captions":
        return found, _captions(place), partial(read_captioned, choice=choice)
    if found == "llamafactory":
        file, layout, root = find_entry(place, entry)
        if not is_there(file):
            raise DataError(f"{file}: no such file or folder, though dataset_info.json names it")
        return (
            found,
            RawTable(root.absolute(), _rows(file, split, cache, row_limit)),
            partial(read_llamafactory, layout=layout),
        )
    root = place if place.is_dir() else place.parent
    return found, RawTable(root.absolute(), _rows(place, split, cache, row_limit)), row_reader(found)


def shards_of(path: str | Path) -> list[str] | None:
    """Return the files of a pattern, of a tar, or of a folder of tars; None where the path is something else."""
    files = expand(str(path))
    if files is None and str(path).endswith(".tar") and (is_remote(path) or os.path.isfile(path)):  # noqa: PTH113
        return [str(path)]
    if files is None and not is_remote(path) and os.path.isdir(path):  # noqa: PTH112 (a name that cannot be is none)
        tars = sorted(str(file) for file in Path(path).glob("*.tar"))
        others = [f for ending in ("parquet", "jsonl") for f in Path(path).glob(f"*.{ending}")]
        return tars if tars and not others else None
    return files


def _shards(
    path: str, files: Sequence[str], name: str, choice: CaptionChoice, cache: Path | None, row_limit: int
) -> tuple[str, RawTable, RowReader]:
    """Return format, rows and reader of files of one kind."""
    kinds = {Path(file).suffix for file in files}
    if len(kinds) > 1 or not kinds <= {".jsonl", ".parquet", ".tar"}:
        found = ", ".join(sorted(kind or "no ending" for kind in kinds))
        raise DataError(f"{path}: shards must all be .jsonl, .parquet or .tar files, not {found}")
    kind = kinds.pop()
    if kind != ".tar":
        places = [Path(file) for file in files]
        rows = (
            arrow_rows(load_parquet(places, cache), places[0].name)
            if kind == ".parquet"
            else chain.from_iterable(jsonl_rows(place, row_limit) for place in places)
        )
        found = detect_format(places[0]) if name == "auto" else name
        return found, RawTable(places[0].parent.absolute(), rows), row_reader(found)
    files = [file if is_remote(file) else str(Path(file).absolute()) for file in files]
    found = detect_tar(files[0]) if name == "auto" else name
    reader = partial(read_captioned, choice=choice) if found == "captions" else row_reader(found)
    return found, RawTable(Path.cwd(), tar_rows(files)), reader


def _rows(path: Path, split: str | None, cache: Path | None, row_limit: int) -> Iterable[RawRow]:
    """Return the rows of a JSONL, JSON or Parquet file, of a folder of them, or of a saved dataset."""
    if path.is_dir():
        if is_saved_dataset(path):
            return arrow_rows(load_saved(path, split), path.name)
        files = data_files(path, split)
        if files[0].suffix == ".parquet":
            return arrow_rows(load_parquet(files, cache), path.name)
        return _rows(files[0], split, cache, row_limit)
    require_file(path)
    if path.suffix == ".parquet":
        return arrow_rows(load_parquet([path], cache), path.name)
    if path.suffix == ".json":
        return json_rows(path, row_limit)
    if path.suffix == ".jsonl":
        return jsonl_rows(path, row_limit)
    raise DataError(f"{path}: must be .jsonl, .json, .parquet or a folder, not {path.suffix or 'without a suffix'}")


def _karpathy(path: Path, split: str | None) -> RawTable:
    if path.is_dir():
        path = data_files(path, None)[0]
    document = json_document(path)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(f"{path}: no list 'images' with something in it, so not a Karpathy JSON")
    wanted = _TRAIN if split in (None, "train") else None if split == "all" else (split,)
    rows = [
        RawRow(number, value, file=path.name)
        for number, value in enumerate(images, 1)
        if wanted is None or not isinstance(value, Mapping) or value.get("split") in wanted
    ]
    if not any(isinstance(row.value, Mapping) for row in rows):
        splits = sorted({str(image.get("split")) for image in images if isinstance(image, Mapping)})
        raise DataError(f"{path}: no image of split {split or 'train'!r}; it has {', '.join(splits) or 'none'}")
    values = [row.value for row in rows[:_SAMPLES] if isinstance(row.value, Mapping)]
    samples = [str(Path(str(v.get("filepath") or "")) / str(v.get("filename"))) for v in values]
    return RawTable(image_folder(path.parent, samples).absolute(), rows)


def _coco(path: Path) -> RawTable:
    """Gather the captions of each image of a COCO JSON; images without any are left out."""
    if path.is_dir():
        path = data_files(path, None)[0]
    document = json_document(path)
    images, notes = (document.get(key) if isinstance(document, dict) else None for key in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(notes, list):
        raise DataError(f"{path}: no lists 'images' and 'annotations', so not a captions JSON of COCO's form")
    captions: dict[Any, list[Any]] = {}
    for number, note in enumerate(notes, 1):
        if not isinstance(note, Mapping) or "image_id" not in note or "caption" not in note:
            raise DataError(f"{path}: annotation {number} has no image_id or no caption")
        captions.setdefault(str(note["image_id"]), []).append(note["caption"])
    rows = [
        RawRow(number, {**value, "captions": captions[str(value.get("id"))]}, file=path.name)
        for number, value in enumerate(images, 1)
        if isinstance(value, Mapping) and str(value.get("id")) in captions
    ]
    if not rows:
        raise DataError(f"{path}: no image has an annotation; the test split has no captions to compare with")
    samples = [str(row.value.get("file_name")) for row in rows[:_SAMPLES]]
    return RawTable(image_folder(path.parent, samples).absolute(), rows)


def _captions(path: Path) -> RawTable:
    file = captions_csv(path) if path.is_dir() else path
    if file is None:
        raise DataError(f"{path}: no captions CSV in this folder (a header with an image and a caption column)")
    rows = list(caption_rows(file))
    samples = [row.value["image"] for row in rows[:_SAMPLES] if row.error is None]
    return RawTable(image_folder(file.parent, samples).absolute(), rows)
