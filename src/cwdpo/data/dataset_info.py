"""LLaMA-Factory's `dataset_info.json`: which file an entry means, and how its rows are spelled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwdpo.data.formats.llamafactory import INFO_NAME, Layout, is_dataset_info
from cwdpo.data.tables.text_tables import is_there, json_document
from cwdpo.errors import DataError

__all__ = ["find_entry", "split_name"]


def split_name(path: str) -> tuple[Path, str | None]:
    """Return the path and the entry's name of `…/dataset_info.json:name` or `folder:name`."""
    whole = Path(path)
    if ":" not in path or is_there(whole):
        return whole, None
    before, _, name = path.rpartition(":")
    known = Path(before).name == INFO_NAME or (Path(before) / INFO_NAME).is_file()
    return (Path(before), name) if known else (whole, None)


def find_entry(path: Path, name: str | None) -> tuple[Path, Layout | None, Path]:
    """Return the data file or folder, its layout (None: to be guessed row by row), and the folder of its images.

    Args:
        path: `dataset_info.json`, its folder, or a data file beside it.
        name: Name of the entry; may be left out where one entry fits.

    Raises:
        DataError: No such entry, or one that is not a local file.
    """
    info = path if path.name == INFO_NAME else (path if path.is_dir() else path.parent) / INFO_NAME
    beside = path.is_file() and path.name != INFO_NAME
    if not info.is_file():
        if beside:
            return path, None, path.parent
        raise DataError(f"{info}: no such file; the llamafactory format needs it, or the path of a data file")
    document = json_document(info)
    if not is_dataset_info(document):
        if beside:
            return path, None, path.parent
        raise DataError(f"{info}: must map names of datasets to objects with file_name")
    if beside:
        entries = {key: entry for key, entry in document.items() if entry.get("file_name") == path.name}
        if not entries:
            return path, None, path.parent
        name = next(iter(entries))
    key = name if name is not None else _only_entry(info, document)
    if key not in document:
        raise DataError(f"{info}: no dataset {key!r}; it has {_listed(document)}")
    entry = document[key]
    where = f"{info} dataset {key!r}"
    if not isinstance(entry.get("file_name"), str):
        raise DataError(f"{where}: has no file_name; only local files are read, so download it first")
    return info.parent / entry["file_name"], Layout.from_entry(entry, where), info.parent


def _only_entry(info: Path, document: Mapping[str, Any]) -> str:
    ranking = [key for key, entry in document.items() if entry.get("ranking")]
    candidates = ranking or list(document)
    if len(candidates) == 1:
        return candidates[0]
    raise DataError(f"{info}: has several datasets; say which as {INFO_NAME}:NAME: {_listed(candidates)}")


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    keys = list(names)
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
