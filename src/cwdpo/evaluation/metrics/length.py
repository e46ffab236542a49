"""Length of captions."""

from __future__ import annotations

from typing import ClassVar

from cwdpo.evaluation.metrics.caption_metric import Captioned, CaptionMetric
from cwdpo.probes.figures import Better

__all__ = ["Length"]


class Length(CaptionMetric):
    """Tokens of a caption, mean over pictures."""

    name: ClassVar[str] = "length"
    about: ClassVar[str] = "tokens of a caption, mean over pictures"
    better: ClassVar[Better] = "none"

    def measure(self, captioned: Captioned) -> list[float]:
        """Return the number of tokens of each caption."""
        return [float(len(text.split())) for text in captioned.tokens]
