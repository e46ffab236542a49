"""BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cwdpo.evaluation.intervals import bootstrap
from cwdpo.evaluation.metrics.caption_metric import Captioned, CaptionMetric, Score

__all__ = ["Bleu"]


class Bleu(CaptionMetric):
    """BLEU-1 to BLEU-4 × 100 of the whole set, by the closest reference length (pycocoevalcap)."""

    name: ClassVar[str] = "bleu"
    about: ClassVar[str] = "BLEU-1 to BLEU-4 of the whole set (closest reference length)"

    def measure(self, captioned: Captioned) -> dict[str, Score]:
        """Return `bleu_1` to `bleu_4`."""
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        scorer = BleuScorer(n=4)
        for caption, gold in zip(captioned.tokens, captioned.references, strict=True):
            scorer += (caption, list(gold))
        values, _ = scorer.compute_score(option="closest", verbose=0)
        rows = [
            [
                *one["correct"],
                *one["guess"],
                one["testlen"],
                min((abs(n - one["testlen"]), n) for n in one["reflen"])[1],
            ]
            for one in scorer.ctest
        ]
        return {
            f"bleu_{n}": Score(100 * value, bootstrap(rows, lambda sums, n=n: 100 * _bleu_of(sums, n)))
            for n, value in enumerate(values, 1)
        }


def _bleu_of(sums: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Return BLEU-n from sums of 4 matches, 4 n-gram counts, length and reference length, as pycocoevalcap does."""
    precisions = [(matches + 1e-15) / (grams + 1e-9) for matches, grams in zip(sums[:n], sums[4 : 4 + n], strict=True)]
    ratio = (sums[8] + 1e-15) / (sums[9] + 1e-9)
    return np.prod(precisions, axis=0) ** (1 / n) * np.exp(np.minimum(0, 1 - 1 / ratio))
