"""Prompt groups that stay in a JSONL file: each is read when it is asked for, found by a table of line offsets.

Lines are read at their place (`pread`) and not through a memory map: pages of a map count as memory of the process, and
a file that is cut short under a map kills it. The table of offsets is mapped; it has 8 bytes a row.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import distributed

from cwdpo.data.own_rows import read_native
from cwdpo.data.row_checks import check_group
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import RunError, one_line
from cwdpo.files import whole_file

__all__ = ["LazyGroups", "MappedGroups", "StoredGroups"]

_BLOCK = 1 << 22
_SHORTEST = 3
"""Bytes of the shortest line that holds a row; shorter ones are blank."""


class LazyGroups(Sequence[PromptGroup]):
    """Prompt groups by index, none of them in memory; a slice is a list."""

    @property
    @abstractmethod
    def stamp(self) -> str:
        """What changes whenever the rows change."""

    @abstractmethod
    def read(self, index: int) -> PromptGroup:
        """Return the group at an index that is in range."""

    @overload
    def __getitem__(self, index: int) -> PromptGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[PromptGroup]: ...
    def __getitem__(self, index: int | slice) -> PromptGroup | list[PromptGroup]:
        """Return one group, or the list of a slice."""
        if isinstance(index, slice):
            return [self.read(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} in {len(self)} groups")
        return self.read(int(index) % len(self))

    def __iter__(self) -> Iterator[PromptGroup]:
        """Yield the groups in order, one in memory at a time."""
        return (self.read(i) for i in range(len(self)))


class StoredGroups(LazyGroups):
    """The rows of a JSONL file in our own format, which a run wrote.

    Picklable: another process opens the file for itself.

    Args:
        path: The file. The table of its offsets is kept beside it where that can be written, and rebuilt where it is
            older than the file.
        root: Folder that relative image paths start from.
        require: What a row must have, as in `DataSource`; looked at when the row is read.
        rows: How many the run wrote; None where that is not known.

    Raises:
        RunError: The file has fewer rows, or more.
    """

    def __init__(self, path: Path, root: Path, require: str = "response", rows: int | None = None) -> None:
        self.path, self._root, self._require = path, root.absolute(), require
        self._offsets = _offsets(path)
        self._handle: int | None = None
        if rows is not None and len(self) != rows:
            raise RunError(
                f"{path}: has {len(self)} rows, the run wrote {rows}; put it back, or delete the folder that it is in"
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def stamp(self) -> str:
        """Path, size and time of the last change."""
        facts = self.path.stat()
        return f"{self.path} {facts.st_size} {facts.st_mtime_ns}"

    def read(self, index: int) -> PromptGroup:
        """Return the group of a line.

        Raises:
            RunError: The line is not what the run wrote.
        """
        where = f"row {index + 1}"
        try:
            row = json.loads(self._line(index))
            group = read_native(row, RowContext(self.path.name, index + 1, self._root, self.path.stem, own=True))[0]
            check_group(group, self._require, None)
        except (RowError, ValueError, RecursionError, TypeError) as error:
            raise RunError(
                f"{self.path}: {where} is damaged ({one_line(error, 160)}); put the file back, or delete the folder "
                "that it is in"
            ) from None
        return group

    def _line(self, index: int) -> bytes:
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        start, end = (int(self._offsets[index + i]) for i in (0, 1))
        return os.pread(self._handle, end - start, start)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_root": self._root, "_require": self._require}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["_root"], state["_require"])

    def __del__(self) -> None:
        handle: int | None = getattr(self, "_handle", None)  # not there where the file could not be opened
        if handle is not None:
            os.close(handle)


class MappedGroups(LazyGroups):
    """Lazy groups of which each is changed when it is read.

    Args:
        groups: The groups.
        change: A group and its index, to the group that is seen; picklable.
        name: What tells the change from others, for `stamp`.
    """

    def __init__(self, groups: LazyGroups, change: Callable[[PromptGroup, int], PromptGroup], name: str) -> None:
        self._groups, self._change, self._name = groups, change, name

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def stamp(self) -> str:
        """That of the groups, and the change."""
        return f"{self._groups.stamp} {self._name}"

    def read(self, index: int) -> PromptGroup:
        """Return a group as the change makes it."""
        return self._change(self._groups.read(index), index)


def _offsets(path: Path) -> Any:
    """Return `Int64[rows + 1]`: where each row begins, and the size of the file."""
    kept, facts = path.with_suffix(".offsets.npy"), path.stat()
    try:
        if kept.stat().st_mtime_ns >= facts.st_mtime_ns:
            found = np.load(kept, mmap_mode="r")
            if found.ndim == 1 and found.dtype == np.int64 and len(found) and found[-1] == facts.st_size:
                return found
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or cut short
    found = _scan(path)
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
        return found  # rank 0 holds the run directory, and keeps the table
    try:
        with whole_file(kept) as handle:
            np.save(handle, found)
    except OSError:
        return found  # a folder that cannot be written to
    return np.load(kept, mmap_mode="r")


def _scan(path: Path) -> Any:
    """Return the offsets of a file's lines, but for blank ones."""
    ends: list[Any] = [np.zeros(1, np.int64)]
    with path.open("rb") as handle:
        size = 0
        while block := handle.read(_BLOCK):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size + 1)
            size += len(block)
    edges = np.unique(np.concatenate([*ends, np.array([size], np.int64)]))
    starts = edges[:-1][np.diff(edges) >= _SHORTEST]
    return np.append(starts, np.int64(size))
