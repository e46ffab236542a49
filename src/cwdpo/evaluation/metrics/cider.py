"""CIDEr-D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cwdpo.data.words import words
from cwdpo.evaluation.metrics.caption_metric import Captioned, CaptionMetric

__all__ = ["Cider", "cider", "cider_of_tokens"]


class Cider(CaptionMetric):
    """CIDEr-D × 100, mean over pictures (pycocoevalcap); document frequencies from the references of the set."""

    name: ClassVar[str] = "cider"
    about: ClassVar[str] = "CIDEr-D, mean over pictures; document frequencies from the references of the set"

    def measure(self, captioned: Captioned) -> list[float]:
        """Return CIDEr-D of each picture."""
        return cider_of_tokens(captioned.tokens, captioned.references)[1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Return CIDEr-D × 100 over the whole set and per caption, of texts as written, cut into plain words.

    Document frequencies come from the references given, so figures of sets of different size do not compare.

    Args:
        captions: One per picture.
        references: Reference captions of each picture, at least one each.

    Raises:
        ValueError: No picture, or one without references.
    """
    if not captions or any(not r for r in references):
        raise ValueError("CIDEr needs at least one picture, and references for each")
    return cider_of_tokens([words(c) for c in captions], [[words(r) for r in rows] for rows in references])


def cider_of_tokens(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Return the same of texts that are tokenised already."""
    from pycocoevalcap.cider.cider import Cider as Scorer

    gold = {i: list(rows) for i, rows in enumerate(references)}
    score, each = Scorer().compute_score(gold, {i: [c] for i, c in enumerate(captions)})
    return 100 * float(score), [100 * float(s) for s in each]
