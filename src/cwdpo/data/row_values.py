"""Raw values of a row, asked for by type; what is wrong is a `RowError` with a kind that can be counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.errors import DataError, one_line

__all__ = [
    "MOST_IMAGES",
    "RowError",
    "as_list",
    "as_mapping",
    "as_text",
    "excerpt",
    "first_of",
    "kind_of",
    "require_column",
]

MOST_IMAGES = 1000
"""Images that a row may have."""


class RowError(DataError):
    """One row cannot be used.

    Attributes:
        kind: The rule that is broken, in the same words for every row: rows are counted by it.
        detail: The particulars.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind, self.detail = kind, detail
        super().__init__(one_line(f"{kind}: {detail}" if detail else kind, 600))


def as_text(value: Any, what: str) -> str:
    """Return `value` where it is text that can be written as UTF-8, unchanged."""
    if not isinstance(value, str):
        raise RowError("wrong type", f"{what} must be text, not {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("broken text", f"{what} holds half of a surrogate pair") from None
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """Return `value` where it is a list."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    raise RowError("wrong type", f"{what} must be a list, not {kind_of(value)}")


def as_mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return `value` where it is an object with text keys."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return value
    raise RowError("wrong type", f"{what} must be an object, not {kind_of(value)}")


def require_good(row: Mapping[str, Any], mark: str) -> None:
    """Refuse a row whose only answer is marked as bad, as in data for KTO.

    Raises:
        RowError: The column `mark` is false.
    """
    if row.get(mark) is False:
        raise RowError(
            "only a bad answer", f"{mark} is false (KTO): no chosen answer; set data.pair_unpaired: true for pairs"
        )


def require_column(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column that must be there and not null."""
    value = row.get(name)
    if value is None:
        raise RowError("missing column", f"'{name}' is not in the row" if name not in row else f"'{name}' is null")
    return value


def first_of(row: Mapping[str, Any], *names: str) -> Any:
    """Return the first value that is there and not null, or None."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def kind_of(value: Any) -> str:
    """Return what a user calls the type of `value`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) else type(value).__name__


def excerpt(raw: Any, limit: int = 300) -> str:
    """Return the beginning of a raw row on one line, safe to write as UTF-8."""
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=_placeholder)
    return one_line(text.encode("utf-8", "backslashreplace").decode("utf-8"), limit)


def _placeholder(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, (bytes, bytearray)) else ""
    return f"<{type(value).__name__}{size}>"
