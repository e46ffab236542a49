"""A path and its format, opened: raw rows, and the reader that understands them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from cwdpo.data.dataset_info import find_entry, split_name
from cwdpo.data.detect_format import detect_format, detect_tar
from cwdpo.data.formats.llamafactory import read_llamafactory
from cwdpo.data.own_rows import read_native
from cwdpo.data.row_columns import proposal, renamed
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_format import FORMATS, Format
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import PromptGroup
from cwdpo.data.tables.find_files import data_files
from cwdpo.data.tables.hub import hub_folder, hub_id
from cwdpo.data.tables.image_tar import tar_rows
from cwdpo.data.tables.parquet import arrow_rows, is_saved_dataset, load_parquet, load_saved
from cwdpo.data.tables.raw_row import RawRow, RawTable
from cwdpo.data.tables.remote_files import expand, is_remote
from cwdpo.data.tables.text_tables import ROW_LIMIT, is_there, json_rows, jsonl_rows, require_file
from cwdpo.data.unpaired import paired
from cwdpo.errors import DataError, RecipeError

__all__ = ["RowReader", "open_source", "row_reader", "shards_of"]

RowReader = Callable[[Mapping[str, Any], RowContext], list[PromptGroup]]
"""Turns one raw row into its groups, or raises `RowError`."""


def row_reader(name: str, columns: Mapping[str, str] | None = None) -> RowReader:
    """Return the reader of rows of a format.

    Args:
        name: The format.
        columns: What columns of the rows are called, as in `DataSource`.

    Raises:
        DataError: There is no such format.
    """
    return _Reading(_format(name).groups, columns or {})


def _format(name: str) -> type[Format]:
    try:
        return FORMATS.find(name)
    except RecipeError as error:
        raise DataError(f"data.format: {error}") from error


@dataclass(frozen=True)
class _Reading:
    """A reader of rows whose columns have other names, and which proposes such names where one is missing."""

    read: RowReader
    columns: Mapping[str, str]

    def __call__(self, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        try:
            return self.read(renamed(row, self.columns), context)
        except RowError as error:
            if error.kind != "missing column":
                raise
            raise RowError(error.kind, f"{error.detail}, which has {', '.join(row)}; {proposal(row)}") from None


def open_source(
    path: str | Path,
    name: str,
    split: str | None,
    cache: Path | None = None,
    row_limit: int = ROW_LIMIT,
    columns: Mapping[str, str] | None = None,
    pair_unpaired: bool = False,
) -> tuple[str, RawTable, RowReader]:
    """Return the format, the rows and their reader. Rows are read as they are asked for.

    Args:
        path: File or folder; `dataset_info.json:name` for LLaMA-Factory; the id of a data set on the hub.
        name: One of `FORMATS`, `auto`, or `my_rows.py:read`, a reader of the user's own.
        split: Which split; None is `train` where there are several (Karpathy's `restval` belongs to it), and `all`
            is every image of a Karpathy file.
        cache: Folder for the Arrow copy of Parquet files; None: the cache of `datasets`.
        row_limit: Bytes of the longest line of JSON.
        columns: What columns of the rows are called: `{prompt: question}` reads `question` as the prompt.
        pair_unpaired: Whether rows are answers marked good or bad, to be grouped by prompt.

    Raises:
        DataError: Not there, empty, or not in that format.
    """
    columns = columns or {}
    if pair_unpaired:
        _, table, _ = open_source(path, "cwdpo", split, cache, row_limit)
        return "unpaired", RawTable(table.root, paired(table.rows, columns)), read_native
    if name != "auto":
        _format(name)
    files = shards_of(path)
    if files is not None:
        return _shards(str(path), files, name, cache, row_limit, columns)
    place, entry = split_name(str(path))
    if (hub := hub_id(str(path))) is not None:
        place = hub_folder(hub)
    if not is_there(place):
        raise DataError(f"{place}: no such file or folder")
    found = detect_format(path, split, columns) if name == "auto" else name
    kind = _format(found)
    if found == "llamafactory":
        file, layout, root = find_entry(place, entry)
        if not is_there(file):
            raise DataError(f"{file}: no such file or folder, though dataset_info.json names it")
        table = RawTable(root.absolute(), _rows(file, split, cache, row_limit))
        return found, table, _Reading(partial(read_llamafactory, layout=layout), columns)
    root = place if place.is_dir() else place.parent
    table = kind.open(place, split) or RawTable(root.absolute(), _rows(place, split, cache, row_limit))
    return found, table, _Reading(kind.groups, columns)


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
    path: str, files: Sequence[str], name: str, cache: Path | None, row_limit: int, columns: Mapping[str, str]
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
        found = detect_format(places[0], None, columns) if name == "auto" else name
        return found, RawTable(places[0].parent.absolute(), rows), row_reader(found, columns)
    files = [file if is_remote(file) else str(Path(file).absolute()) for file in files]
    found = detect_tar(files[0], columns) if name == "auto" else name
    return found, RawTable(Path.cwd(), tar_rows(files)), row_reader(found, columns)


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
