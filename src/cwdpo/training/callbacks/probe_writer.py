"""What the probes keep beside `probes.jsonl`: every prompt's log-probabilities, and a few distributions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cwdpo.files import append_jsonl, read_json, read_jsonl, write_jsonl, write_text
from cwdpo.processes import processes

__all__ = ["PromptFile", "TokenFile", "trim_rows"]


def trim_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the rows of a JSON-lines file that lie beyond `step` (a killed run got further than its checkpoint)."""
    if not path.is_file():
        return []
    rows = [row for row in read_jsonl(path) if row["step"] <= step]
    write_jsonl(path, rows)
    return rows


class PromptFile:
    """`probe_prompts.jsonl`: at every reading, ℓ̄ of each kind for each prompt, as columns.

    The first row also has `ids`, and `floor` and `tau`, from which w_c follows (Eq. 6).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "probe_prompts.jsonl"
        self._start: dict[str, list[float | None]] = {}

    def resume(self, step: int) -> None:
        """Take up the rows of a run that got as far as `step`."""
        rows = processes().lead(lambda: trim_rows(self.path, step))
        self._start = rows[0]["logp_mean"] if rows else {}

    def begin(self, *, write: bool) -> None:
        """Forget another run's rows; `write`: whether this process writes files."""
        if write:
            self.path.unlink(missing_ok=True)
        self._start = {}

    def keep(self, step: int, prompts: Sequence[Mapping[str, Any]], *, write: bool, **first: Any) -> dict[str, float]:
        """Append a reading.

        Args:
            step: The update.
            prompts: For each prompt its `id` and ℓ̄ by kind.
            write: Whether this process writes files.
            **first: Facts for the first row.

        Returns:
            For each kind the standard error, over prompts, of the mean change since the start; NaN of one prompt.
        """
        kinds = list(dict.fromkeys(kind for row in prompts for kind in row if kind != "id"))
        columns = {k: [None if row.get(k) is None else round(float(row[k]), 5) for row in prompts] for k in kinds}
        facts: dict[str, Any] = {}
        if not self._start:
            self._start, facts = columns, {"ids": [row["id"] for row in prompts], **first}
        if write:
            append_jsonl(self.path, {"step": step, **facts, "logp_mean": columns})
        return {kind: _standard_error(self._start.get(kind, []), values) for kind, values in columns.items()}


def _standard_error(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    pairs = zip(before, after, strict=False)
    changes = [b - a for a, b in pairs if a is not None and b is not None]
    if len(changes) < 2:
        return math.nan
    return float(torch.tensor(changes, dtype=torch.float64).std()) / math.sqrt(len(changes))


class TokenFile:
    """`probe_tokens.json`: the likeliest tokens of a few gold responses at the start and at the last reading."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "probe_tokens.json"
        self._start: list[dict[str, Any]] | None = None

    def resume(self) -> None:
        """Take up the start of a run that goes on."""
        self._start = read_json(self.path, start=object)["start"] if self.path.is_file() else None

    def begin(self, *, write: bool) -> None:
        """Forget another run's distributions; `write`: whether this process writes files."""
        if write:
            self.path.unlink(missing_ok=True)
        self._start = None

    def keep(self, step: int, found: list[dict[str, Any]], *, write: bool) -> None:
        """Keep a reading's distributions in place of the last one's."""
        self._start = found if self._start is None else self._start
        if write:
            content = {"step": step, "start": self._start, "last": found}
            write_text(self.path, json.dumps(content, ensure_ascii=False) + "\n")
