"""Which format a path is in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwdpo.data.dataset_info import split_name
from cwdpo.data.row_columns import proposal, renamed
from cwdpo.data.row_format import FORMATS
from cwdpo.data.tables.find_files import CSV_SUFFIXES, JSON_SUFFIXES, captions_csv, data_files
from cwdpo.data.tables.hub import hub_folder, hub_id
from cwdpo.data.tables.image_tar import tar_rows
from cwdpo.data.tables.parquet import arrow_rows, is_saved_dataset, load_saved, parquet_head
from cwdpo.data.tables.raw_row import RawRow
from cwdpo.data.tables.remote_files import copied, expand, file_name, is_remote
from cwdpo.data.tables.text_tables import caption_columns, is_there, json_document, json_rows, jsonl_rows, require_file
from cwdpo.errors import DataError, one_line

__all__ = ["detect_format", "detect_tar", "format_of_row", "undecidable"]

Columns = Mapping[str, str]
_HEAD = 20
"""Rows that are looked at."""


def detect_format(path: str | Path, split: str | None = None, columns: Columns | None = None) -> str:
    """Return the name of the format of a file, a folder or a data set on the hub.

    Args:
        path: As for `load_groups`.
        split: Which split of a folder to look at.
        columns: What columns of the rows are called, as in `DataSource`.

    Raises:
        DataError: Not there, or not one of the formats; or its columns fit several, which are then listed.
    """
    columns = columns or {}
    shards = expand(str(path))
    if shards is not None or is_remote(path):
        return _of_shard(shards[0] if shards is not None else str(path), columns)
    place, name = split_name(str(path))
    if name is not None:
        return "llamafactory"
    if (hub := hub_id(str(path))) is not None:
        known = next((kind.name for kind in FORMATS.all().values() if hub in kind.hub), None)
        return known or detect_format(hub_folder(hub), split, columns)
    if not is_there(place):
        raise DataError(f"{place}: no such file or folder")
    return _of_folder(place, split, columns) if place.is_dir() else _of_file(place, columns)


def _of_shard(path: str, columns: Columns) -> str:
    """Return the format of one file of several, or of one behind an address."""
    if path.endswith(".tar"):
        return detect_tar(path, columns)
    if not is_remote(path):
        return detect_format(path, None, columns)
    with tempfile.TemporaryDirectory() as folder, copied(path, Path(folder)) as copy:
        return detect_format(copy, None, columns)


def detect_tar(path: str, columns: Columns | None = None) -> str:
    """Return the format of the samples of a tar: that of the columns of their JSON, or captions."""
    rows = tar_rows([path])
    try:
        first = next((row for row in rows if isinstance(row.value, dict)), None)
    finally:
        rows.close()
    if first is not None and "captions" in first.value and "image" in first.value:
        return "captions"
    return _of_rows(Path(file_name(path)), [] if first is None else [first], columns or {})


def format_of_row(row: Mapping[str, Any], where: Path, columns: Columns | None = None) -> str | None:
    """Return the format whose columns a row has, or None.

    Where several fit, the one that asks for more columns, all those of the others among them, is meant.

    Raises:
        DataError: Several fit, and none of them is.
    """
    row = renamed(row, columns or {})
    found = {name: set(fit) for name, kind in FORMATS.all().items() if (fit := kind.fits(row))}
    best = [name for name, fit in found.items() if not any(fit < other for other in found.values())]
    if len(best) > 1:
        listed = "; ".join(f"{name} by {', '.join(sorted(found[name]))}" for name in best)
        raise DataError(one_line(f"{where}: its columns fit several formats ({listed}); set data.format to one", 700))
    return best[0] if best else None


def undecidable(path: Path, seen: Iterable[Any] = (), why: str = "") -> DataError:
    """Return the error that says which columns were seen and what they may be called."""
    columns = sorted(map(str, seen))
    found = f" from the columns {', '.join(columns)}: {proposal(columns)}, or" if columns else f"{why};"
    return DataError(
        one_line(f"{path}: cannot tell its format{found} set data.format to one that `cwdpo data` lists", 900)
    )


def _of_folder(path: Path, split: str | None, columns: Columns) -> str:
    if is_saved_dataset(path):
        return _of_rows(path, arrow_rows(load_saved(path, split), path.name), columns)
    for name, kind in FORMATS.all().items():
        if kind.index and (path / kind.index).is_file() and _holds(kind, json_document(path / kind.index)):
            return name
    if captions_csv(path) is not None:
        return "captions"
    return _of_file(data_files(path, split)[0], columns)


def _of_file(path: Path, columns: Columns) -> str:
    require_file(path)
    if path.suffix == ".tar":
        return detect_tar(str(path), columns)
    if path.suffix == ".parquet":
        return _of_rows(path, parquet_head(path), columns)
    if path.suffix == ".jsonl":
        return _of_rows(path, jsonl_rows(path), columns)
    if path.suffix in JSON_SUFFIXES:
        return _of_document(path) or _of_rows(path, json_rows(path), columns)
    if path.suffix in CSV_SUFFIXES:
        caption_columns(path)
        return "captions"
    raise undecidable(path, why=f" from its suffix {path.suffix!r}")


def _of_document(path: Path) -> str | None:
    """Return the format of a JSON file that is one object and no list of rows, or None."""
    with path.open("rb") as handle:
        if not handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
    try:
        document = json_document(path)
    except DataError:
        return None  # JSON lines under the name .json, or broken: said elsewhere
    fitting = ((name, kind) for name, kind in FORMATS.all().items() if kind.index in ("", path.name))
    return next((name for name, kind in fitting if _holds(kind, document)), None)


def _holds(kind: Any, document: Any) -> bool:
    return isinstance(document, dict) and kind.holds(document)


def _of_rows(path: Path, rows: Iterable[RawRow], columns: Columns) -> str:
    """Return the format of the first rows that are objects."""
    seen: Sequence[str] = ()
    for row in rows:
        if isinstance(row.value, Mapping):
            found = format_of_row(row.value, path, columns)
            if found is not None:
                return found
            seen = seen or list(map(str, row.value))
        if row.number >= _HEAD:
            break
    raise undecidable(path, seen, ": no row of the first is an object")
