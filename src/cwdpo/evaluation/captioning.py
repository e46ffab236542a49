"""Captions of many prompts, in batches, kept as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwdpo.data.schema import PromptGroup
from cwdpo.files import append_jsonl, read_jsonl, text_digest, write_jsonl
from cwdpo.models.generation import generate
from cwdpo.scoring.encode import PromptEncoder

__all__ = ["caption_groups", "caption_hypotheses"]


def caption_groups(
    load: Callable[[], Any],
    encoder: PromptEncoder,
    groups: Sequence[PromptGroup],
    path: Path,
    *,
    key: str,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Answer every prompt greedily; see `caption_hypotheses`."""
    settings: dict[str, Any] = {"key": key, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    return [answers[0] for answers in caption_hypotheses(load, encoder, groups, path, **settings, progress=progress)]


def caption_hypotheses(
    load: Callable[[], Any],
    encoder: PromptEncoder,
    groups: Sequence[PromptGroup],
    path: Path,
    *,
    key: str,
    batch_size: int,
    max_new_tokens: int,
    beams: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[str]]:
    """Answer every prompt, greedily or by beam search; a killed call goes on where it was.

    Args:
        load: Loads the model; called only if something is left to do.
        encoder: Its prompt encoder.
        groups: The prompts.
        path: JSON-lines file of `{"id", "caption"}` rows, with the batch's key; `captions` too where there are beams.
        key: What the captions depend on beside the prompts (the model's content).
        batch_size: Prompts at once.
        max_new_tokens: Longest answer.
        beams: Width of the beam search, all of whose hypotheses are kept; 1 is greedy.
        progress: Called with the prompts done and their number.

    Returns:
        The answers to each prompt, the likeliest first.
    """
    settings = (batch_size, max_new_tokens) if beams == 1 else (batch_size, max_new_tokens, beams)
    key = text_digest(key, str(settings), *(g.id for g in groups))[:16]
    kept = [row for row in read_jsonl(path) if row.get("key") == key] if path.is_file() else []
    kept = kept[: len(kept) - len(kept) % batch_size] if len(kept) < len(groups) else kept
    write_jsonl(path, kept)
    model: Any = None
    for start in range(len(kept), len(groups), batch_size):
        model = model if model is not None else load()
        part = groups[start : start + batch_size]
        answers = generate(
            model,
            encoder.tokenizer,
            lambda prompts: encoder.prompt_inputs(prompts, padding=True),
            part,
            max_new_tokens=max_new_tokens,
            num_beams=beams,
            num_return_sequences=beams,
        )
        rows = [
            {"id": g.id, "caption": a[0], **({"captions": a} if beams > 1 else {}), "key": key}
            for g, a in zip(part, answers, strict=True)
        ]
        append_jsonl(path, *rows)
        kept += rows
        if progress is not None:
            progress(min(start + batch_size, len(groups)), len(groups))
    return [row.get("captions", [row["caption"]]) for row in kept]
