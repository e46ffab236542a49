"""ROUGE-L."""

from __future__ import annotations

from typing import ClassVar

from cwdpo.evaluation.metrics.caption_metric import Captioned, CaptionMetric

__all__ = ["RougeL"]


class RougeL(CaptionMetric):
    """ROUGE-L × 100, β = 1.2, mean over pictures (pycocoevalcap)."""

    name: ClassVar[str] = "rouge_l"
    about: ClassVar[str] = "ROUGE-L, β = 1.2, mean over pictures"

    def measure(self, captioned: Captioned) -> list[float]:
        """Return ROUGE-L of each picture."""
        from pycocoevalcap.rouge.rouge import Rouge

        rouge, pairs = Rouge(), zip(captioned.tokens, captioned.references, strict=True)
        return [100 * float(rouge.calc_score([caption], list(gold))) for caption, gold in pairs]
