"""The chosen response with its words in another order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.source import Candidate, Source, SourceContext, seeded
from cwdpo.negatives.text import normalise

__all__ = ["ShuffleSource", "shuffled"]

_END = ".!?"


def shuffled(text: str, rng: random.Random) -> str | None:
    """Return `text` with its words in another order, or None if there is no other.

    A full stop stays at the end, and the first word's capital moves to the word that now comes first.
    """
    body = text.rstrip()
    stop = body[len(body.rstrip(_END + " ")) :]
    parts = body[: len(body) - len(stop)].split()
    if len({normalise(p) for p in parts}) < 2:
        return None
    capital = parts[0][:1].isupper() and not parts[0][1:2].isupper()
    order = [parts[0][:1].lower() + parts[0][1:] if capital else parts[0], *parts[1:]]
    before = [normalise(p) for p in order]
    while [normalise(p) for p in order] == before:
        rng.shuffle(order)
    if capital:
        order[0] = order[0][:1].upper() + order[0][1:]
    return " ".join(order) + stop


class ShuffleSource(Source):
    """The words of the chosen response in another order. The easy end of the scale, for probes and ablations."""

    name: ClassVar[str] = "shuffle"
    order: ClassVar[int] = 5

    def candidates(self, group: PromptGroup, count: int, context: SourceContext) -> Sequence[Candidate]:
        """Return as many orders as are wanted, or fewer if some turn out the same."""
        rng = seeded(context.seed, group.id, "shuffle")
        texts = dict.fromkeys(shuffled(group.chosen.text, rng) for _ in range(count))
        return [Candidate(text, "easy", ("order",)) for text in texts if text is not None]
