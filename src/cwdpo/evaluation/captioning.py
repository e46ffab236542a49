"""Captions of many prompts, in batches, kept as they come."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwdpo.data.schema import PromptGroup
from cwdpo.errors import RunError
from cwdpo.evaluation.resumable_batches import kept_rows
from cwdpo.files import text_digest
from cwdpo.models.generation import generate
from cwdpo.processes import processes
from cwdpo.scoring.collator import PromptEncoder

__all__ = ["caption_groups", "caption_hypotheses", "captioner"]


def caption_groups(
    load: Callable[[], Any],
    encoder: PromptEncoder,
    groups: Sequence[PromptGroup],
    path: Path,
    **settings: Any,
) -> list[str]:
    """Return the likeliest answer to every prompt; see `caption_hypotheses`."""
    return [answers[0] for answers in caption_hypotheses(load, encoder, groups, path, **settings)]


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
    name: str = "",
) -> list[list[str]]:
    """Answer every prompt, greedily or by beam search; a killed call resumes where it stopped.

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
        name: Under which other processes help, see `Processes.lead`.

    Returns:
        The answers to each prompt, the likeliest first.
    """
    answer = captioner(functools.cache(load), encoder, max_new_tokens, beams)
    settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "name": name}
    depends = str((batch_size, max_new_tokens) if beams == 1 else (batch_size, max_new_tokens, beams))
    rows = kept_rows(groups, path, answer, key=text_digest(key, depends), **settings)
    found = [row.get("captions", [row.get("caption")]) for row in rows]
    if not all(isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in found):
        raise RunError(f"{path}: is damaged (a row without caption); delete the file")
    return found


def captioner(
    model: Callable[[], Any], encoder: PromptEncoder, max_new_tokens: int, beams: int = 1
) -> Callable[[Sequence[PromptGroup]], list[dict[str, Any]]]:
    """Return what answers a batch of prompts, with the model that `model` gives, as rows for the file."""

    def answer(part: Sequence[PromptGroup]) -> list[dict[str, Any]]:
        found = generate(
            model(),
            encoder.tokenizer,
            lambda prompts: processes().each(lambda: encoder.prompt_inputs(prompts, padding=True)),
            part,
            max_new_tokens=max_new_tokens,
            num_beams=beams,
            num_return_sequences=beams,
        )
        return [{"caption": texts[0], **({"captions": texts} if beams > 1 else {})} for texts in found]

    return answer
