"""Values of files that may be cut short, odd, or a stranger's: what is not as it should be is empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from cwdpo.errors import printable

__all__ = ["as_list", "as_map", "clean", "number", "series_of"]

_LARGEST = 1e30


def _at(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value


def number(value: Any, *path: str) -> float | None:
    """Return the finite number that lies at a path, as float, or None."""
    found = _at(value, path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if abs(found) <= _LARGEST else None


def as_map(value: Any, *path: str) -> dict[str, Any]:
    """Return the mapping that lies at a path, or an empty one."""
    found = _at(value, path)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def as_list(value: Any, *path: str) -> list[Any]:
    """Return the list that lies at a path, or an empty one."""
    found = _at(value, path)
    return cast("list[Any]", found) if isinstance(found, list) else []


def clean(value: Any) -> Any:
    """Return a JSON value without control characters in its texts."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): clean(item) for key, item in cast("dict[Any, Any]", value).items()}
    return [clean(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value


def series_of(rows: Sequence[dict[str, Any]], *path: str) -> list[tuple[float, float]]:
    """Return (step, value) of what lies at a path in each row, where it is a number."""
    points = [(number(row, "step"), number(row, *path)) for row in rows]
    return [(step, value) for step, value in points if step is not None and value is not None]
