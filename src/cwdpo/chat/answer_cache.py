"""What a model wrote, kept as it comes: nothing is asked for twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwdpo.files import append_jsonl, read_jsonl, write_jsonl

__all__ = ["TextCache"]


class TextCache:
    """A JSON-lines file of `{key: value, …}` objects that only grows; if a key is there twice, the last one counts.

    Each `add` is one line, flushed to disk before it returns: a kill loses nothing that was added.

    Args:
        path: The file; created when something is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        if path.is_file():
            rows = list(read_jsonl(path))
            if not path.read_bytes().endswith(b"\n"):
                write_jsonl(path, rows)  # a line cut short by a kill would swallow the next one
            for row in rows:
                self._values.update(row)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def values(self) -> list[Any]:
        """Return every value."""
        return list(self._values.values())

    def add(self, rows: Mapping[str, Any]) -> None:
        """Add values, all of them or none."""
        append_jsonl(self.path, dict(rows))
        self._values.update(rows)
