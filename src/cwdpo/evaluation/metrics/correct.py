"""Whether captions are right, where the exact scene is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cwdpo.data.schema import PromptGroup
from cwdpo.evaluation.intervals import share_interval
from cwdpo.evaluation.java import Unavailable
from cwdpo.evaluation.metrics.caption_metric import Captioned, CaptionMetric, Score
from cwdpo.scenes.grammar import is_correct
from cwdpo.scenes.world import Scene

__all__ = ["Correct"]


class Correct(CaptionMetric):
    """Share of captions × 100 that are wholly right, by the exact meaning of `scenes`."""

    name: ClassVar[str] = "correct"
    about: ClassVar[str] = "share of captions that are wholly right (data of `scenes` only)"

    @classmethod
    def applies(cls, groups: Sequence[PromptGroup]) -> bool:
        """Whether every picture has its scene."""
        return bool(groups) and all("scene" in group.facts for group in groups)

    def measure(self, captioned: Captioned) -> Score:
        """Return the share.

        Raises:
            Unavailable: A picture has no scene.
        """
        if not self.applies(captioned.groups):
            raise Unavailable("only data of the world `scenes` says what is right")
        pairs = zip(captioned.texts, captioned.groups, strict=True)
        right = [float(is_correct(text, Scene.from_json(group.facts["scene"]))) for text, group in pairs]
        ends = share_interval(right)
        interval = None if ends is None else (100 * ends[0], 100 * ends[1])
        return Score(100 * sum(right) / len(right), interval, tuple(100 * r for r in right))
