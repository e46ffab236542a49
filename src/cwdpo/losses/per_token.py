"""Losses of means per token: IPO as its authors compute it, and SimPO."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cwdpo.losses.checks import check_at_least_0, check_positive
from cwdpo.losses.pairs import PairLogps, PairLoss

__all__ = ["ipo", "simpo"]


def ipo(pairs: PairLogps, *, beta: float = 0.1) -> PairLoss:
    """Identity preference optimisation (Azar et al., 2023), on means per token.

        loss = (h − 1/(2β))²,  h = Δ_w / L_w − Δ_l / L_l

    The paper writes sums, under which the target 1/(2β) would mean less the longer the responses are; the means are the
    authors' own reading, and TRL's.

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β (their τ): h is drawn to 1/(2β) nats per token.

    Returns:
        Loss per pair; `margin` is h; the coefficients are 2(1/(2β) − h) over L_w and over L_l, negative once h is
        beyond its target.

    Raises:
        ValueError: If `beta` is not positive.
    """
    check_positive("beta", beta)
    gap = pairs.chosen_shift / pairs.chosen_tokens - pairs.rejected_shift / pairs.rejected_tokens
    missing = 1 / (2 * beta) - gap
    return PairLoss(
        loss=missing.square(),
        margin=gap.detach(),
        weight=pairs.chosen_tokens / pairs.rejected_tokens,
        winner_coefficient=2 * missing.detach() / pairs.chosen_tokens,
        loser_coefficient=2 * missing.detach() / pairs.rejected_tokens,
    )


def simpo(pairs: PairLogps, *, beta: float = 2.0, target_margin: float = 1.0) -> PairLoss:
    """SimPO: no reference, means per token, a margin to reach (Meng et al., 2024).

        loss = −log σ(m),  m = β(ℓ̄_θ(y_w) − ℓ̄_θ(y_l)) − γ

    Args:
        pairs: Log-probabilities of the pairs; those of the reference are not read.
        beta: β; larger than DPO's by about the length of a response (the paper: 2 to 2.5).
        target_margin: γ, by which the winner's reward β·ℓ̄ is to lead. (TRL's `simpo_gamma` is this γ too; the ratio
            γ/β is what the paper tunes, about 0.5.)

    Returns:
        Loss per pair; the coefficients are β(1 − a) over L_w and over L_l, a = σ(m).

    Raises:
        ValueError: If `beta` is not positive or `target_margin` is negative.
    """
    check_positive("beta", beta)
    check_at_least_0("target_margin", target_margin)
    margin = beta * (pairs.chosen_mean - pairs.rejected_mean) - target_margin
    residual = beta * torch.sigmoid(-margin.detach())
    return PairLoss(
        loss=-F.logsigmoid(margin),
        margin=margin.detach(),
        weight=pairs.chosen_tokens / pairs.rejected_tokens,
        winner_coefficient=residual / pairs.chosen_tokens,
        loser_coefficient=residual / pairs.rejected_tokens,
    )
