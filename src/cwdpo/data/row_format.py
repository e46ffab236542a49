"""What a format of rows is: how it is known, what becomes of its columns, and how a row becomes prompt groups.

A format, or a public data set with columns of its own, is one file in `cwdpo/data/formats/` with one class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.own_rows import read_native
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_values import RowError, as_mapping
from cwdpo.data.schema import PromptGroup
from cwdpo.data.tables.raw_row import RawTable
from cwdpo.errors import one_line
from cwdpo.plugins import Registry

__all__ = ["FORMATS", "Format", "columns_of"]


class Format:
    """A format; its docstring's first line says what it is. A function of a row does as well, in a user's own file."""

    name: ClassVar[str]
    """What `data.format` calls it: the module's name."""
    hub: ClassVar[tuple[str, ...]] = ()
    """Its ids on the Hugging Face hub: `data.path` may be one of them."""
    rows: ClassVar[str] = ""
    """How many rows were published."""
    licence: ClassVar[str] = ""
    """Of the data set; empty where its card has to be asked."""
    columns: ClassVar[Mapping[str, str]] = {}
    """What becomes of each column; those that are not listed are not read."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """The columns that a row is known by: all of them are there."""
    without: ClassVar[frozenset[str]] = frozenset()
    """Columns that a row of this format has not."""
    index: ClassVar[str] = ""
    """Name of a JSON file that speaks for its whole folder, where the format has one."""

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> Collection[str]:
        """Return the columns that a row is known by to be in this format; none where it is not."""
        there = columns_of(row)
        return cls.needs if cls.needs <= there and not cls.without & there else ()

    @classmethod
    def holds(cls, document: Mapping[str, Any]) -> bool:
        """Return whether a JSON file that is one object, and no list of rows, is in this format."""
        return False

    @classmethod
    def open(cls, path: Path, split: str | None) -> RawTable | None:
        """Return the rows of a file or folder that is no list of rows; None where it is one."""
        return None

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any] | Iterable[Mapping[str, Any]]:
        """Return a row of our own format (`prompt`, `images` or `image`, `chosen`, `rejected`), or several.

        Args:
            row: As the file has it; asked for a column that it has not, it is refused with the column's name.

        Raises:
            Exception: Of any kind: the row cannot be used.
        """
        raise NotImplementedError

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the groups of a row.

        Raises:
            RowError: It cannot be used.
        """
        try:
            made = cls.read(_Columns(row))
            rows = [as_mapping(one, "a row of the reader") for one in ([made] if isinstance(made, Mapping) else made)]
        except RowError:
            raise
        except Exception as error:  # whatever the user's function raises is said of the row
            raise RowError("refused by the reader", f"{type(error).__name__}: {one_line(error, 200)}") from error
        if len(rows) > 1:
            stem = row.get("id") or context.default_id
            rows = [
                {**as_mapping(one, "what the reader returns"), "id": f"{stem}#{i}"} for i, one in enumerate(rows, 1)
            ]
        return [g for one in rows for g in read_native(as_mapping(one, "what the reader returns"), context)]


class _Columns(dict[str, Any]):
    """A row that says which column it has not."""

    def __missing__(self, name: str) -> Any:
        raise RowError("missing column", f"'{name}' is not in the row")


def columns_of(row: Mapping[str, Any]) -> set[str]:
    """Return the columns that are there and not null."""
    return {key for key, value in row.items() if value is not None}


def _of_function(function: Callable[..., Any]) -> type[Format]:
    return type(function.__name__, (Format,), {"read": staticmethod(function)})


FORMATS = Registry("format of rows", "cwdpo.data.formats", Format, _of_function)
"""Every format that is read."""
