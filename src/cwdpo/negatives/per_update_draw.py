"""Which of a prompt's candidates an update trains on: by the shares of the moment, and by how much they still teach."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from cwdpo.data.schema import REJECTED
from cwdpo.methods.cooling import cooling_weight
from cwdpo.negatives.candidates import seeded
from cwdpo.recipe import SourceMix
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse
from cwdpo.scoring.reference import ReferenceCache

__all__ = ["LEAST_WEIGHT", "Picker", "frontier", "uniform"]

LEAST_WEIGHT = 0.05
"""Weight of the coldest and of the likeliest candidates, where the best have 1: none is left out for good."""

Weigh = Callable[[Sequence[EncodedResponse]], Sequence[float]]


def uniform(responses: Sequence[EncodedResponse]) -> list[float]:
    """Return the same weight for every candidate."""
    return [1.0] * len(responses)


def frontier(scores: ReferenceCache, floor: float, tau: float) -> Weigh:
    """Return weights that are highest where w_c changes most with ℓ̄: 4 w_c (1 - w_c), at least `LEAST_WEIGHT`.

    Args:
        scores: Log-probabilities of the candidates, by content.
        floor: ℓ_floor of w_c.
        tau: Its τ.
    """

    def weigh(responses: Sequence[EncodedResponse]) -> list[float]:
        sums = scores.sums([r.key for r in responses]).double()
        tokens = torch.tensor([len(r.ids) for r in responses], dtype=torch.float64)
        weights = cooling_weight(sums / tokens, floor=floor, tau=tau)
        return (4 * weights * (1 - weights)).clamp(min=LEAST_WEIGHT).tolist()

    return weigh


class Picker:
    """Draws `per_prompt` of each prompt's rejected responses for an update, and leaves the others out.

    A candidate is drawn with probability proportional to the share of its source at the moment, divided among the
    candidates of that source that the prompt has, times its weight. A prompt that has nothing of the sources with a
    share draws from the others. What a prompt gets depends on the seed, the update and the prompt alone.

    Args:
        mix: Shares and `per_prompt`.
        seed: Fixes the draw.
        weigh: Weights of candidates.
    """

    def __init__(self, mix: SourceMix, seed: int, weigh: Weigh = uniform) -> None:
        self._mix, self._seed, self._weigh = mix, seed, weigh

    def __call__(self, batch: Batch, update: int, updates: int) -> Batch:
        """Return the batch as the update sees it.

        Args:
            batch: Prompts with all their candidates.
            update: The update, from 0.
            updates: Updates of the stage.
        """
        shares = self._mix.shares_at(update / max(1, updates - 1))
        rejected = [r for group in batch.groups if not group.altered for r in group.responses if r.role == REJECTED]
        weights = iter(self._weigh(rejected) if rejected else [])
        gone: dict[str, list[EncodedResponse]] = {}
        groups: list[EncodedGroup] = []
        for group in batch.groups:
            if group.altered:  # a twin with altered images, which comes after its prompt: the same responses go
                texts = {r.ids for r in gone[group.id]}
                kept = [r for r in group.responses if not r.role.endswith(REJECTED) or r.ids not in texts]
            else:
                row = [r for r in group.responses if r.role == REJECTED]
                chance = seeded(self._seed, group.id, f"update {update}")
                drawn = draw(
                    [r.source for r in row], [next(weights) for _ in row], shares, self._mix.per_prompt, chance
                )
                gone[group.id] = [r for i, r in enumerate(row) if i not in drawn]
                kept = [r for r in group.responses if not any(r is other for other in gone[group.id])]
            groups.append(replace(group, responses=tuple(kept)))
        return Batch(tuple(groups))


def draw(
    sources: Sequence[str], weights: Sequence[float], shares: Mapping[str, float], count: int, chance: random.Random
) -> set[int]:
    """Draw some candidates of a prompt, each at most once.

    Args:
        sources: Of every candidate.
        weights: Of every candidate, above 0.
        shares: By source.
        count: How many to draw.
        chance: Source of chance.

    Returns:
        Their indices.
    """
    left, drawn = list(range(len(sources))), set[int]()
    while left and len(drawn) < count:
        many = Counter(sources[i] for i in left)
        odds = [shares.get(sources[i], 0.0) / many[sources[i]] * weights[i] for i in left]
        (one,) = chance.choices(left, odds if any(odds) else [weights[i] for i in left])
        drawn.add(one)
        left.remove(one)
    return drawn
