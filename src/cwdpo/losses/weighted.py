"""DPO with a weight on the whole pair: by how well it is ranked, or by how likely the policy finds it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cwdpo.losses.checks import check_at_least_0, check_positive
from cwdpo.losses.pairs import PairLogps, PairLoss

__all__ = ["focal_dpo", "focalpo", "wpo"]


def focal_dpo(pairs: PairLogps, *, beta: float = 0.1, gamma: float = 2.0) -> PairLoss:
    """DPO with the focal loss (Lin et al., 2017): well-ranked pairs count less. The paper's "Focal-DPO".

        loss = −(1 − p)^γ log p,  p = σ(m),  m = β(Δ_w − Δ_l)

    The paper names no γ; 2 is that of the focal loss. `focalpo` does the reverse.

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β.
        gamma: γ; 0 gives DPO.

    Returns:
        Loss per pair; both coefficients are β(1 − p)^γ (1 − p − γ p log p).

    Raises:
        ValueError: If `beta` is not positive or `gamma` is negative.
    """
    check_positive("beta", beta)
    check_at_least_0("gamma", gamma)
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    log_p, log_q = F.logsigmoid(margin), F.logsigmoid(-margin)
    with torch.no_grad():
        pull = beta * (gamma * log_q).exp() * (log_q.exp() - gamma * log_p.exp() * log_p)
    return PairLoss(
        loss=-(gamma * log_q).exp() * log_p,
        margin=margin.detach(),
        weight=torch.ones_like(pull),
        winner_coefficient=pull,
        loser_coefficient=pull,
    )


def focalpo(pairs: PairLogps, *, beta: float = 0.1, gamma: float = 0.05) -> PairLoss:
    """FocalPO: pairs that are ranked rightly count more (Liu et al., 2025).

        loss = −p^γ log p,  p = σ(m),  m = β(Δ_w − Δ_l)

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β.
        gamma: γ; 0 gives DPO.

    Returns:
        Loss per pair; both coefficients are β p^γ (1 − p)(1 + γ log p), negative for pairs so badly ranked that
        log p < −1/γ: they are given up.

    Raises:
        ValueError: If `beta` is not positive or `gamma` is negative.
    """
    check_positive("beta", beta)
    check_at_least_0("gamma", gamma)
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    log_p = F.logsigmoid(margin)
    with torch.no_grad():
        pull = beta * (gamma * log_p).exp() * torch.sigmoid(-margin) * (1 + gamma * log_p)
    return PairLoss(
        loss=-(gamma * log_p).exp() * log_p,
        margin=margin.detach(),
        weight=torch.ones_like(pull),
        winner_coefficient=pull,
        loser_coefficient=pull,
    )


def wpo(pairs: PairLogps, *, beta: float = 0.1) -> PairLoss:
    """WPO: DPO weighted by how likely the policy finds both responses (Zhou et al., 2024).

        loss = −W · log σ(m),  W = exp(ℓ̄_θ(y_w)) · exp(ℓ̄_θ(y_l)), detached,  m = β(Δ_w − Δ_l)

    This is the paper's plain weight. TRL's `use_weighting` is its "sampled alignment": each token's log-probability
    against log Σ_v π(v)² at its place, so that a typical sample has W near 1.

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β.

    Returns:
        Loss per pair; both coefficients are W · β(1 − a), a = σ(m).

    Raises:
        ValueError: If `beta` is not positive.
    """
    check_positive("beta", beta)
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    whole = (pairs.chosen_mean + pairs.rejected_mean).detach().exp()
    pull = whole * beta * torch.sigmoid(-margin.detach())
    return PairLoss(
        loss=-whole * F.logsigmoid(margin),
        margin=margin.detach(),
        weight=torch.ones_like(pull),
        winner_coefficient=pull,
        loser_coefficient=pull,
    )
