"""Rejected responses that came with the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cwdpo.data.schema import REJECTED, PromptGroup
from cwdpo.negatives.candidates import Candidate

__all__ = ["DatasetSource"]


class DatasetSource:
    """The rejected responses that came with the data, with their own difficulty."""

    name = "dataset"
    costly = False

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return all rejected responses of each row."""
        return {g.id: [Candidate(r.text, self.name, r.difficulty) for r in g.by_role(REJECTED)] for g in groups}
