"""Diversity: how many of the n-grams differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from cwdpo.evaluation.metrics.caption_metric import Captioned, CaptionMetric

__all__ = ["Distinct"]


class Distinct(CaptionMetric):
    """Different n-grams × 100 over all n-grams of the captions (Li et al., 2016)."""

    name: ClassVar[str] = "distinct"
    about: ClassVar[str] = "different n-grams over all n-grams of the captions"

    longest: int = Field(default=2, ge=1)
    """Longest n-gram: `distinct_1` to `distinct_n` are measured."""

    def measure(self, captioned: Captioned) -> dict[str, float]:
        """Return `distinct_1`, `distinct_2`, …."""
        return {f"distinct_{n}": _distinct(captioned.tokens, n) for n in range(1, self.longest + 1)}


def _distinct(captions: Sequence[str], n: int) -> float:
    grams = [tuple(tokens[i : i + n]) for tokens in map(str.split, captions) for i in range(len(tokens) - n + 1)]
    return 100 * len(set(grams)) / len(grams) if grams else 0.0
