"""What is right of another image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.candidates import Candidate, gold_texts, seeded
from cwdpo.negatives.text import normalise

__all__ = ["OtherSource"]


class OtherSource:
    """The chosen response of another image: easy, but there for any data.

    Args:
        groups: All rows of the stage: what is drawn from.
        seed: Fixes the draw.
    """

    name = "other"
    costly = False

    def __init__(self, groups: Sequence[PromptGroup], seed: int) -> None:
        # Sorted: the draw does not depend on the order of the rows.
        self._answers = sorted({group.chosen.text for group in groups})
        self._seed = seed

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return as many answers of other rows as are wanted; an answer that is also gold here is drawn again."""
        return {group.id: self._draw(group, wanted[group.id]) for group in groups}

    def _draw(self, group: PromptGroup, count: int) -> list[Candidate]:
        rng = seeded(self._seed, group.id, "other")
        gold = {"", *map(normalise, gold_texts(group))}
        drawn = (self._answers[rng.randrange(len(self._answers))] for _ in range(20 * count))
        fit = dict.fromkeys(text for text in drawn if normalise(text) not in gold)
        return [Candidate(text, self.name, "easy") for text in list(fit)[:count]]
