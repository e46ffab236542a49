"""Multiple choice by likelihood: the letters of all options are scored as answers to one prompt, in one pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cwdpo.data.schema import Response
from cwdpo.evaluation.benchmarks import Question
from cwdpo.evaluation.resumable_batches import kept_rows
from cwdpo.files import text_digest
from cwdpo.models.modes import inference
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import Scorer

__all__ = ["likeliest", "option_logps"]


def option_logps(
    load: Callable[[], Any],
    encoder: PromptEncoder,
    questions: Sequence[Question],
    scorer: Scorer,
    path: Path,
    *,
    key: str,
    batch_size: int,
) -> list[dict[str, float]]:
    """Return of each question the log-probability of each option's letter as its answer, in nats.

    The letter alone is scored, without the end of the turn: what would follow it does not count, nor how long an
    option's text is. A killed call goes on where it was.

    Args:
        load: Loads the model; called only if something is left to do.
        encoder: Its prompt encoder.
        questions: Questions with options.
        scorer: How responses are scored.
        path: JSON-lines file that keeps them.
        key: What they depend on beside the questions' ids (the model's content, the prompts).
        batch_size: Questions at once.
    """
    model, letters_only = functools.cache(load), replace(encoder, include_eos=False)
    by_id = {question.prompt.id: question for question in questions}

    def answer(part: Sequence[Any]) -> list[dict[str, Any]]:
        rows = [[Response(letter, "option") for letter in by_id[group.id].options] for group in part]
        batch = Batch(tuple(letters_only.encode(g.with_responses(r)) for g, r in zip(part, rows, strict=True)))
        with inference(model()):
            values = iter(scores_from_logits(scorer(model(), batch)).logp_sum.tolist())
        return [{"logps": {response.text: next(values) for response in row}} for row in rows]

    key = text_digest(key, "letters", str(batch_size))
    kept = kept_rows([q.prompt for q in questions], path, answer, key=key, batch_size=batch_size)
    return [row["logps"] for row in kept]


def likeliest(logps: dict[str, float]) -> str:
    """Return the letter with the largest log-probability; of equal ones the first."""
    return max(logps, key=logps.__getitem__)
