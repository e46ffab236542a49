"""The likeliest next tokens at every place of a few gold responses: the shape of a distribution, not only its shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cwdpo.data.schema import CHOSEN
from cwdpo.scoring.batch import Batch, ResponseLogits

__all__ = ["KEPT", "top_tokens"]

KEPT = 20
"""Tokens kept at a place: the five of the start are then nearly always among those of the end."""


def top_tokens(found: ResponseLogits, batch: Batch, tokenizer: Any, wanted: int) -> list[dict[str, Any]]:
    """Return the likeliest tokens at every place of the first chosen response of some prompts.

    Args:
        found: The logits of the batch.
        batch: The batch.
        tokenizer: Turns token ids into text.
        wanted: How many prompts, from the first on.

    Returns:
        For each prompt `id`, `gold` (the response's tokens as text) and `places`: for each token the list of
        (token as text, probability), the likeliest first.
    """
    rows: list[dict[str, Any]] = []
    responses, owner = batch.responses, batch.owner
    first: dict[int, int] = {}
    for row in batch.rows(CHOSEN):
        first.setdefault(owner[row], row)
    for group, row in list(first.items())[:wanted]:
        log_p = found.logits[found.rows == row].float().log_softmax(-1)
        best = log_p.topk(min(KEPT, log_p.shape[-1]), dim=-1)
        rows.append(
            {
                "id": batch.groups[group].id,
                "gold": _texts(tokenizer, responses[row].ids),
                "places": _places(tokenizer, best.indices, best.values.exp()),
            }
        )
    return rows


def _places(tokenizer: Any, ids: Tensor, probabilities: Tensor) -> list[list[list[Any]]]:
    values = torch.round(probabilities.cpu().double(), decimals=5).tolist()
    texts = [_texts(tokenizer, place) for place in ids.tolist()]
    return [[[t, p] for t, p in zip(*place, strict=True)] for place in zip(texts, values, strict=True)]


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([token]) for token in ids]
