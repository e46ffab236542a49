"""The chosen response with its words in another order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.candidates import Candidate, seeded
from cwdpo.negatives.text import normalise

__all__ = ["ShuffleSource", "shuffled"]

_END = ".!?"


def shuffled(text: str, rng: random.Random) -> str | None:
    """Return `text` with its words in another order, a full stop left at the end; None where there is no other order.

    The first word's capital moves to the word that comes first.
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


class ShuffleSource:
    """Word order: the same words, no sentence. The easy end of the scale, for probes and ablations.

    Args:
        seed: Fixes the order.
    """

    name = "shuffle"
    costly = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return as many orders of each chosen response as are wanted, or fewer where some come out the same."""
        return {group.id: self._orders(group, wanted[group.id]) for group in groups}

    def _orders(self, group: PromptGroup, count: int) -> list[Candidate]:
        rng = seeded(self._seed, group.id, "shuffle")
        texts = dict.fromkeys(shuffled(group.chosen.text, rng) for _ in range(count))
        return [Candidate(text, self.name, "easy", ("order",)) for text in texts if text is not None]
