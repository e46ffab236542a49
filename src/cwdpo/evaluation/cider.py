"""How good captions are: CIDEr against references, exact correctness on `scenes`, paired intervals."""

from __future__ import annotations

from collections.abc import Sequence

from cwdpo.data.words import words

__all__ = ["cider", "cider_of_tokens"]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Return CIDEr-D × 100 over the whole set and per caption (pycocoevalcap; words as `words` finds them).

    Document frequencies come from the references given, so figures of sets of different size do not compare.

    Args:
        captions: One per picture.
        references: Gold captions of each picture, at least one each.

    Raises:
        ValueError: No picture, or one without references.
    """
    if not captions or any(not r for r in references):
        raise ValueError("CIDEr needs at least one picture, and references for each")
    return cider_of_tokens([words(c) for c in captions], [[words(r) for r in rows] for rows in references])


def cider_of_tokens(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Return CIDEr-D × 100 over the whole set and per caption, of texts that are tokenised already."""
    from pycocoevalcap.cider.cider import Cider

    gold = {i: list(rows) for i, rows in enumerate(references)}
    score, each = Cider().compute_score(gold, {i: [c] for i, c in enumerate(captions)})
    return 100 * float(score), [100 * float(s) for s in each]
