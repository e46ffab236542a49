"""A reader of rows from the user's own file, `data.format: my_rows.py:read`, or from an installed package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cwdpo.data.formats.native import read_native
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_values import RowError, as_mapping
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import DataError, RecipeError, one_line
from cwdpo.plugins import Registry

__all__ = ["OwnReader", "own_reader"]


class OwnReader:
    """A reader of rows in a form of the user's own; a function of a row does as well."""

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of our own format: `prompt`, `images` or `image`, `chosen`, `rejected`.

        Args:
            row: As the file has it.

        Raises:
            Exception: Of any kind: the row cannot be used.
        """
        raise NotImplementedError


def _of_function(function: Callable[..., Any]) -> type[OwnReader]:
    return type(function.__name__, (OwnReader,), {"read": staticmethod(function)})


_READERS = Registry("reader of rows", "cwdpo.data.formats", OwnReader, _of_function)


def own_reader(name: str) -> Callable[[Mapping[str, Any], RowContext], list[PromptGroup]]:
    """Return the reader of this name.

    Raises:
        DataError: There is none, or the file does not give one.
    """
    try:
        reader = _READERS.find(name)
    except RecipeError as error:
        raise DataError(f"data.format: {error}") from error

    def read(row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        try:
            made = reader.read(row)
        except RowError:
            raise
        except Exception as error:  # whatever the user's function raises is said of the row
            raise RowError("refused by the reader", f"{type(error).__name__}: {one_line(error, 200)}") from error
        return read_native(as_mapping(made, "what the reader returns"), context)

    return read
