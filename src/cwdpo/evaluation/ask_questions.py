"""A model's answers to the questions of a benchmark: written, or the likeliest option, all scored in one pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cwdpo.data.schema import Response
from cwdpo.evaluation.benchmarks import Question
from cwdpo.evaluation.captioning import caption_groups
from cwdpo.evaluation.resumable_batches import kept_rows
from cwdpo.files import text_digest
from cwdpo.models.modes import inference
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import Scorer

__all__ = ["ask", "option_logps"]


def ask(
    model: Any,
    encoder: PromptEncoder,
    questions: Sequence[Question],
    scorer: Scorer,
    *,
    by: Literal["generation", "likelihood"],
    kept: tuple[Path, Path],
    key: str,
    batch_size: int,
    max_new_tokens: int,
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Return an answer to each question, and by likelihood the log-probabilities of its options by the question's id.

    Args:
        model: The model.
        encoder: Its prompt encoder.
        questions: The questions; open ones are answered in writing either way.
        scorer: How options are scored.
        by: Read the option from what the model writes, or take the likeliest.
        kept: JSON-lines files of written answers and of log-probabilities, from which a killed call resumes.
        key: What the answers depend on beside the questions: the model's content.
        batch_size: Questions at once.
        max_new_tokens: Longest written answer.
    """
    choices = [q for q in questions if q.options and by == "likelihood"]
    logps: dict[str, dict[str, float]] = {}
    if choices:
        rows = option_logps(lambda: model, encoder, choices, scorer, kept[1], key=key, batch_size=batch_size)
        logps = {question.id: row for question, row in zip(choices, rows, strict=True)}
    written = [q for q in questions if q.id not in logps]
    settings: dict[str, Any] = {"key": key, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    texts = caption_groups(lambda: model, encoder, [q.prompt for q in written], kept[0], **settings)
    answers = {question.id: text for question, text in zip(written, texts, strict=True)}
    answers |= {name: max(row, key=row.__getitem__) for name, row in logps.items()}  # of equal ones the first
    return [answers[question.id] for question in questions], logps


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
    """Return for each question the log-probability of each option's letter as its answer, in nats.

    The letter alone is scored, without the end of the turn: neither what would follow it counts, nor how long an
    option's text is.
    """
    model, letters_only = functools.cache(load), replace(encoder, include_eos=False)
    options = {question.prompt.id: list(question.options) for question in questions}

    def answer(batch: Sequence[Any]) -> list[dict[str, Any]]:
        rows = [[Response(letter, "option") for letter in options[group.id]] for group in batch]
        encoded = Batch(tuple(letters_only.encode(g.with_responses(r)) for g, r in zip(batch, rows, strict=True)))
        with inference(model()):
            values = iter(scores_from_logits(scorer(model(), encoded)).logp_sum.tolist())
        return [{"logps": {response.text: next(values) for response in row}} for row in rows]

    key = text_digest(key, "letters", str(batch_size), *(",".join(letters) for letters in options.values()))
    kept = kept_rows([q.prompt for q in questions], path, answer, key=key, batch_size=batch_size)
    return [row["logps"] for row in kept]
