"""Rejected responses that came with the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cwdpo.data.schema import REJECTED, PromptGroup
from cwdpo.negatives.source import Candidate, Source, SourceContext

__all__ = ["DatasetSource"]


class DatasetSource(Source):
    """The rejected responses that came with the data, as they are."""

    name: ClassVar[str] = "dataset"
    default_share: ClassVar[float] = 1.0
    order: ClassVar[int] = 0

    def candidates(self, group: PromptGroup, count: int, context: SourceContext) -> Sequence[Candidate]:
        """Return all rejected responses of a row, with their own difficulty and score."""
        return [Candidate(r.text, r.difficulty, score=r.score) for r in group.by_role(REJECTED)]
