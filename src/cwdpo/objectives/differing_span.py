"""Where two responses differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["differing_span", "span_mask"]


def differing_span(winner: Sequence[int], loser: Sequence[int]) -> tuple[int, int]:
    """Return the tokens of `loser` from the first to the last in which it differs from `winner`.

    What both begin with and what both end with is left out. Where that leaves nothing of the loser (it lacks something,
    or is the same) the span is one token: the first that is not the winner's at its place, or the last.

    Returns:
        (start, end) in the loser, end excluded and above start.
    """
    shorter = min(len(winner), len(loser))
    start = next((i for i in range(shorter) if winner[i] != loser[i]), shorter)
    tail = next((i for i in range(shorter - start) if winner[-1 - i] != loser[-1 - i]), shorter - start)
    end = len(loser) - tail
    if start < end:
        return start, end
    start = min(start, len(loser) - 1)
    return start, start + 1


def span_mask(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int) -> Tensor:
    """Return `Bool[pairs, width]`: true at the tokens of each loser that differ from its winner."""
    mask = torch.zeros((len(pairs), width), dtype=torch.bool)
    for row, (winner, loser) in enumerate(pairs):
        start, end = differing_span(winner, loser)
        mask[row, start:end] = True
    return mask
