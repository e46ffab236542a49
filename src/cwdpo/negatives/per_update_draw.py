"""Which of a prompt's candidates an update trains on: by the shares of the moment, and by how much they still teach."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from cwdpo.data.schema import REJECTED
from cwdpo.methods.cooling import cooling_weight
from cwdpo.negatives.source import seeded
from cwdpo.recipe import SourceMix
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse
from cwdpo.scoring.reference import ReferenceCache

__all__ = ["MIN_WEIGHT", "NegativeSampler", "frontier"]

MIN_WEIGHT = 0.05
"""Weight of the coldest and of the likeliest candidates, where the best have 1: none is left out for good."""

WeightFunction = Callable[[Sequence[EncodedResponse]], Sequence[float]]


def frontier(scores: ReferenceCache, floor: float, tau: float) -> WeightFunction:
    """Return weights that are highest where w_c changes most with ℓ̄: 4 w_c (1 - w_c), at least `MIN_WEIGHT`.

    Args:
        scores: Log-probabilities of the candidates, by content.
        floor: ℓ_floor of w_c.
        tau: Its τ.
    """

    def weights(responses: Sequence[EncodedResponse]) -> list[float]:
        sums = scores.sums([r.key for r in responses]).double()
        tokens = torch.tensor([len(r.ids) for r in responses], dtype=torch.float64)
        cooling = cooling_weight(sums / tokens, floor=floor, tau=tau)
        return (4 * cooling * (1 - cooling)).clamp(min=MIN_WEIGHT).tolist()

    return weights


class NegativeSampler:
    """Draws `per_prompt` of each prompt's rejected responses for an update, and leaves the others out.

    A candidate is drawn with probability proportional to the share of its source at the moment, divided among the
    prompt's candidates of that source, times its weight. A prompt that has nothing of the sources with a share draws
    from the others. The draw depends on the seed, the update and the prompt alone.

    Args:
        mix: Shares and `per_prompt`.
        seed: Fixes the draw.
        weights: Weights of candidates; None gives them all the same.
    """

    def __init__(self, mix: SourceMix, seed: int, weights: WeightFunction | None = None) -> None:
        self._mix, self._seed, self._weights = mix, seed, weights

    def __call__(self, batch: Batch, update: int, updates: int) -> Batch:
        """Return the batch as the update sees it.

        Args:
            batch: Prompts with all their candidates.
            update: The update, from 0.
            updates: Updates of the stage.
        """
        shares = self._mix.shares_at(update / max(1, updates - 1))
        rejected = [r for group in batch.groups if not group.altered for r in group.responses if r.role == REJECTED]
        weights = iter(self._weights(rejected) if self._weights is not None and rejected else [1.0] * len(rejected))
        left_out: dict[str, list[EncodedResponse]] = {}
        groups: list[EncodedGroup] = []
        for group in batch.groups:
            if group.altered:  # the twin with altered images follows its prompt and loses the same responses
                texts = {r.ids for r in left_out[group.id]}
                kept = [r for r in group.responses if not r.role.endswith(REJECTED) or r.ids not in texts]
            else:
                row = [r for r in group.responses if r.role == REJECTED]
                rng = seeded(self._seed, group.id, f"update {update}")
                drawn = _draw([r.source for r in row], [next(weights) for _ in row], shares, self._mix.per_prompt, rng)
                left_out[group.id] = [r for i, r in enumerate(row) if i not in drawn]
                kept = [r for r in group.responses if not any(r is other for other in left_out[group.id])]
            groups.append(replace(group, responses=tuple(kept)))
        return Batch(tuple(groups))


def _draw(
    sources: Sequence[str], weights: Sequence[float], shares: Mapping[str, float], count: int, rng: random.Random
) -> set[int]:
    """Return the indices of `count` candidates, given the source and the weight (above 0) of each."""
    left, drawn = list(range(len(sources))), set[int]()
    while left and len(drawn) < count:
        candidates = Counter(sources[i] for i in left)
        odds = [shares.get(sources[i], 0.0) / candidates[sources[i]] * weights[i] for i in left]
        (one,) = rng.choices(left, odds if any(odds) else [weights[i] for i in left])
        drawn.add(one)
        left.remove(one)
    return drawn
