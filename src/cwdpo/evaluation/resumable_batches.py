"""What a model says of many prompts, batch by batch, kept as it comes."""

from __future__ import annotations

import json
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
    """Return a row for each prompt. A batch that is in the file, with the same prompts and pictures, is not redone.

    Args:
        groups: The prompts.
        path: JSON-lines file of rows, each with the prompt's `id` and the `key` of its batch.
        answer: Gives the rows of one batch.
        key: What rows depend on beside prompts and pictures (the model's content).
        batch_size: Prompts at once.
        progress: Called with the prompts done and their number.
        name: Under which other processes help, see `Processes.lead`.
    """
    batches = [groups[start : start + batch_size] for start in range(0, len(groups), batch_size)]
    keys = [text_digest(key, str(i), *map(_content, batch))[:16] for i, batch in enumerate(batches)]
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in read_jsonl(path) if path.is_file() else ():
        kept.setdefault(str(row.get("key")), []).append(row)
    kept = {k: kept[k] for k, batch in zip(keys, batches, strict=True) if len(kept.get(k, ())) == len(batch)}
    write_jsonl(path, [row for rows in kept.values() for row in rows])
    missing = [(k, batch) for k, batch in zip(keys, batches, strict=True) if k not in kept]
    answers = processes().map(name, [batch for _, batch in missing], answer, _has_images)
    for (k, batch), rows in zip(missing, answers, strict=True):
        kept[k] = [{"id": g.id, **row, "key": k} for g, row in zip(batch, rows, strict=True)]
        append_jsonl(path, *kept[k])
        if progress is not None:
            progress(sum(map(len, kept.values())), len(groups))
    result = [row for k in keys for row in kept[k]]
    if list(kept) != keys:
        write_jsonl(path, result)
    return result


def _content(group: PromptGroup) -> str:
    return json.dumps([group.id, [dict(m) for m in group.messages], [image.digest() for image in group.images]])


def _has_images(batch: Sequence[PromptGroup]) -> bool:
    return any(group.images for group in batch)
