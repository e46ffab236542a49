"""Stage 1: likelihoods of responses, and penalties on those of the negatives."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cwdpo.losses.checks import check, check_share

__all__ = ["label_smoothed_nll", "nll", "nll_ceiling_penalty", "nll_floor_penalty"]


def nll(logp_sum: Tensor, tokens: Tensor, *, reduction: Literal["mean", "sum"]) -> Tensor:
    """Negative log-likelihood of each response.

    Args:
        logp_sum: log π_θ(y | x), nats, summed over response tokens, `[responses]`.
        tokens: Response tokens, at least 1, `[responses]`.
        reduction: Over the tokens of a response: `mean` is −ℓ̄_θ(y | x), `sum` is −log π_θ(y | x).

    Returns:
        Nats per token (`mean`) or nats (`sum`), `[responses]`.

    Raises:
        ValueError: If `reduction` is neither.
    """
    if reduction == "mean":
        return -logp_sum / tokens
    if reduction == "sum":
        return -logp_sum
    raise ValueError(f"reduction = {reduction!r}: must be 'mean' or 'sum'")


def nll_floor_penalty(nll_rejected: Tensor, floor: float) -> Tensor:
    """Hinge that keeps the NLL of negatives above a floor (Eq. 3, 4): ReLU(C − NLL(y⁻)).

    It stands outside the batch mean in Eq. 4: put in the mean over the global batch. One value per example is the other
    reading.

    Args:
        nll_rejected: NLL of the negatives, any shape, in the unit of `floor`.
        floor: C, nats per token for a mean NLL, nats for a summed one.

    Returns:
        Penalty of the same shape, without the factor λ; its gradient is −1 below the floor and 0 from there on.

    Raises:
        ValueError: If `floor` is not finite.
    """
    check(math.isfinite(floor), "floor", floor, "finite")
    return torch.relu(floor - nll_rejected)


def nll_ceiling_penalty(nll_rejected: Tensor, ceiling: float) -> Tensor:
    """Hinge that keeps the NLL of negatives below a ceiling: ReLU(NLL(y⁻) − C).

    The opposite of Eq. 4, and what the paper's prose describes: negatives keep "sufficient probability".

    Args:
        nll_rejected: NLL of the negatives, any shape, in the unit of `ceiling`.
        ceiling: C, nats per token for a mean NLL, nats for a summed one.

    Returns:
        Penalty of the same shape, without the factor λ; its gradient is 1 above the ceiling and 0 up to there.

    Raises:
        ValueError: If `ceiling` is not finite.
    """
    check(math.isfinite(ceiling), "ceiling", ceiling, "finite")
    return torch.relu(nll_rejected - ceiling)


def label_smoothed_nll(nll_mean: Tensor, uniform_nll_mean: Tensor, *, epsilon: float) -> Tensor:
    """Cross-entropy against the gold token mixed with the uniform distribution: (1 − ε) · NLL + ε · uniform.

    Args:
        nll_mean: −ℓ̄_θ(y | x), nats per token, `[responses]`.
        uniform_nll_mean: −log π_θ averaged over the vocabulary and the response tokens, nats per token, `[responses]`.
        epsilon: ε, the share of the uniform distribution.

    Returns:
        Nats per token, `[responses]`.

    Raises:
        ValueError: If `epsilon` is outside [0, 1].
    """
    check_share("epsilon", epsilon)
    return (1 - epsilon) * nll_mean + epsilon * uniform_nll_mean
