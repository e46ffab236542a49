"""What was written by a model, kept as it comes: nothing is asked for twice."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwdpo.files import append_jsonl, read_jsonl, write_jsonl

__all__ = ["TextCache"]


class TextCache:
    """A JSON-lines file of `{key: value, …}` objects that only grows; of a key that is there twice the last counts.

    Each `add` is one line, written and flushed to disk before it returns, so a kill loses what was under way and
    nothing else. Safe to use from several threads of one process.

    Args:
        path: The file; made when something is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
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

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> list[Any]:
        """Return every value that is kept."""
        with self._lock:
            return list(self._values.values())

    def add(self, rows: Mapping[str, Any]) -> None:
        """Keep values, all of them or none."""
        with self._lock:
            append_jsonl(self.path, dict(rows))
            self._values.update(rows)
