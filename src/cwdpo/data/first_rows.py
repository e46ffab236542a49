"""The first rows of a data file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cwdpo.data.read_source import DataSource, load_groups
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import DataError

__all__ = ["load_first"]


def load_first(path: Path, require: Literal["chosen", "pair"], count: int) -> list[PromptGroup]:
    """Return the first `count` rows of a file.

    Raises:
        DataError: It cannot be read, or has no row.
    """
    groups = list(load_groups(DataSource(path=path, require=require, limit=count)).groups[:count])
    if not groups:
        raise DataError(f"{path}: no row can be used")
    return groups
