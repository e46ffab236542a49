"""One raw row, and a file of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwdpo.data.row_values import RowError

__all__ = ["RawRow", "RawTable"]


@dataclass(frozen=True)
class RawRow:
    """A row as the file has it.

    Attributes:
        number: Row from 1, as an editor counts (the line, in text files).
        value: What stands there: an object if all is well.
        error: Why there is no value, where the line could not be read.
        file: Name of the file, in messages.
        table: The table on disk where image bytes may stay.
    """

    number: int
    value: Any
    error: RowError | None = None
    file: str = ""
    table: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class RawTable:
    """The rows of one source.

    Attributes:
        root: Absolute folder that relative image paths start from, where the user names none.
        rows: The rows, read as they are asked for.
    """

    root: Path
    rows: Iterable[RawRow]
