"""Which files of a folder are data."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cwdpo.data.tables.text_tables import caption_columns, require_file
from cwdpo.errors import DataError

__all__ = ["CSV_SUFFIXES", "JSON_SUFFIXES", "captions_csv", "data_files", "image_folder"]

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
JSON_SUFFIXES = (".json",)

_PREFERRED = ("captions", "metadata", "results")


def captions_csv(folder: Path) -> Path | None:
    """Return the captions CSV of a folder: the one by a usual name, or the only one.

    Raises:
        DataError: Several, and none by a usual name.
    """
    found = [file for file in sorted(folder.iterdir()) if file.suffix in (".csv", ".tsv") and file.is_file()]
    found += [file for file in (folder / "captions.txt", folder / "results.txt") if file.is_file()]
    found = [file for file in found if _has_captions(file)]
    usual = [file for name in _PREFERRED for file in found if file.stem == name]
    if usual:
        return usual[0]
    if len(found) > 1:
        raise DataError(
            f"{folder}: several captions CSVs ({', '.join(f.name for f in found[:4])}); give one as the path"
        )
    return found[0] if found else None


def _has_captions(file: Path) -> bool:
    try:
        caption_columns(file)
    except DataError:
        return False
    return True


def data_files(folder: Path, split: str | None) -> list[Path]:
    """Return the data of a folder: Parquet shards of one split, its tars, or its only JSONL or JSON file.

    Raises:
        DataError: None, or several that could be meant.
    """
    shards = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if shards:
        return _of_split(folder, shards, split)
    tars = sorted(folder.glob("*.tar"))
    for tar in tars:
        require_file(tar)
    files = sorted(file for suffix in (".jsonl", ".json") for file in folder.glob(f"*{suffix}"))
    if tars and not files:
        return tars
    if len(files) > 1:
        files = [file for file in files if file.stem == (split or "train")] or files
    if len(files) == 1:
        return files
    if not files:
        raise DataError(f"{folder}: no data in this folder (.jsonl, .json, .parquet, a captions CSV, a saved dataset)")
    raise DataError(f"{folder}: several data files ({', '.join(f.name for f in files[:4])}); give one as the path")


def _of_split(folder: Path, shards: list[Path], split: str | None) -> list[Path]:
    """Return the shards of a split, which the names of the Hub begin with: `train-00000-of-00002.parquet`."""
    names = sorted({shard.stem.split("-")[0] for shard in shards})
    name = split or ("train" if "train" in names else names[0])
    chosen = [shard for shard in shards if shard.stem.split("-")[0] == name]
    if not chosen or (split is None and name != "train" and len(names) > 1):
        wanted = f"no split {split!r}" if split else "several splits"
        raise DataError(f"{folder}: {wanted}; set split to one of {', '.join(names[:8])}")
    return chosen


def image_folder(base: Path, samples: Iterable[str]) -> Path:
    """Return the folder that image paths start from: `base`, or its `images` where only that one has a sample."""
    inside = base / "images"
    for sample in samples:
        if os.path.exists(base / sample):  # noqa: PTH110 (a name that cannot be is not there)
            return base
        if os.path.exists(inside / sample):  # noqa: PTH110
            return inside
    return base
