"""What a model says of many prompts, a batch at a time, kept as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwdpo.data.schema import PromptGroup
from cwdpo.files import append_jsonl, read_jsonl, text_digest, write_jsonl
from cwdpo.processes import processes

__all__ = ["kept_rows"]


def kept_rows(
    groups: Sequence[PromptGroup],
    path: Path,
    answer: Callable[[Sequence[PromptGroup]], Sequence[dict[str, Any]]],
    *,
    key: str,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    name: str = "",
) -> list[dict[str, Any]]:
    """Return a row for each prompt; a killed call goes on after the last whole batch, so batches are always the same.

    Args:
        groups: The prompts.
        path: JSON-lines file of rows, each with the prompt's `id` and the `key`.
        answer: Gives the rows of one batch; called for what is left to do.
        key: What rows depend on beside the prompts' ids; rows under another key are thrown away.
        batch_size: Prompts at once.
        progress: Called with the prompts done and their number.
        name: Under which other processes help, see `Processes.lead`.
    """
    key = text_digest(key, *(g.id for g in groups))[:16]
    kept = [row for row in read_jsonl(path) if row.get("key") == key] if path.is_file() else []
    kept = kept[: len(kept) - len(kept) % batch_size] if len(kept) < len(groups) else kept
    write_jsonl(path, kept)
    parts = [groups[start : start + batch_size] for start in range(len(kept), len(groups), batch_size)]
    for part, answers in zip(parts, processes().map(name, parts, answer, _has_images), strict=True):
        rows = [{"id": g.id, **row, "key": key} for g, row in zip(part, answers, strict=True)]
        append_jsonl(path, *rows)
        kept += rows
        if progress is not None:
            progress(len(kept), len(groups))
    return kept


def _has_images(part: Sequence[PromptGroup]) -> bool:
    return any(group.images for group in part)
