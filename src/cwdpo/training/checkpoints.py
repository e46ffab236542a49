"""Which checkpoints are whole. A checkpoint counts from the moment its list of files has been written beside them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from cwdpo.files import read_json, write_json

__all__ = ["MARKER", "last_checkpoint", "seal_checkpoint"]

MARKER = "complete.json"
"""File written last into a checkpoint: the name and size of every other file."""

_NAME = re.compile(r"^checkpoint-(\d+)$")


def seal_checkpoint(folder: Path) -> None:
    """Flush every file of a checkpoint to disk, then mark it complete."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER)
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    write_json(folder / MARKER, {str(p.relative_to(folder)): p.stat().st_size for p in files})


def _is_whole(folder: Path) -> bool:
    marker = folder / MARKER
    if not marker.is_file():
        return False
    try:
        sizes: Any = read_json(marker)
    except ValueError:
        return False
    return isinstance(sizes, dict) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items()
    )


def last_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint of a folder, and the names of newer ones that were cut short."""
    if not folder.is_dir():
        return None, []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.match(path.name)) and path.is_dir()]
    broken: list[str] = []
    for _, path in sorted(found, reverse=True):
        if _is_whole(path):
            return path, broken
        broken.append(path.name)
    return None, broken
