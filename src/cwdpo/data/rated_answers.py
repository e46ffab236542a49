"""Rated answers to one prompt as pairs."""

from __future__ import annotations

from collections.abc import Sequence

from cwdpo.data.row_context import Reading
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import CHOSEN, REJECTED, Response

__all__ = ["rated_sets"]


def rated_sets(answers: Sequence[tuple[str, float]], reading: Reading) -> list[list[Response]]:
    """Return the responses of each group that rated answers become, the chosen one first, with their ratings as scores.

    `best`: one group, the best answer against all that are lower. `adjacent`: a pair of each answer and the next one
    that is lower. `all`: a group of each answer and all that are lower.

    Args:
        answers: Texts and their ratings; higher is better.
        reading: Which pairs, and the least gap of their ratings.

    Raises:
        RowError: No two ratings are that far apart.
    """
    ordered = sorted(answers, key=lambda answer: -answer[1])
    groups: list[list[Response]] = []
    for text, rating in ordered:
        lower = [(other, value) for other, value in ordered if value < rating and rating - value >= reading.pair_gap]
        if lower:
            others = lower[:1] if reading.pairs == "adjacent" else lower
            worse = (Response(other, REJECTED, score=value) for other, value in others)
            groups.append([Response(text, CHOSEN, score=rating), *worse])
    if not groups:
        ratings = ", ".join(f"{rating:g}" for _, rating in ordered)
        raise RowError("no pair", f"ratings {ratings or 'none'}: no two differ, or by {reading.pair_gap:g} at least")
    return groups[:1] if reading.pairs == "best" else groups
