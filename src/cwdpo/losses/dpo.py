"""DPO, and what others added to its margin or to its value."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cwdpo.losses.checks import check, check_at_least_0, check_positive
from cwdpo.losses.likelihood import nll
from cwdpo.losses.pairs import PairLogps, PairLoss

__all__ = ["cdpo", "dpo", "dpop", "rpo"]


def dpo(pairs: PairLogps, *, beta: float = 0.1) -> PairLoss:
    """Direct preference optimisation (Rafailov et al., 2023; Eq. 10).

        loss = −log σ(m),  m = β(Δ_w − Δ_l)

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β, how strongly the policy is held to the reference.

    Returns:
        Loss per pair; both coefficients are β(1 − a), a = σ(m).

    Raises:
        ValueError: If `beta` is not positive.
    """
    check_positive("beta", beta)
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    residual = torch.sigmoid(-margin.detach())  # 1 − a, without the cancellation
    return PairLoss(
        loss=-F.logsigmoid(margin),
        margin=margin.detach(),
        weight=torch.ones_like(residual),
        winner_coefficient=beta * residual,
        loser_coefficient=beta * residual,
    )


def rpo(pairs: PairLogps, *, beta: float = 0.1, alpha: float = 1.0) -> PairLoss:
    """DPO plus the winner's negative log-likelihood per token (RPO).

        loss = −log σ(m) − α · ℓ̄_θ(y_w | x),  m = β(Δ_w − Δ_l)

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β.
        alpha: α, the factor on the mean NLL; 0 gives DPO.

    Returns:
        Loss per pair; the coefficients are β(1 − a) + α / L_w and β(1 − a), a = σ(m).

    Raises:
        ValueError: If `beta` is not positive or `alpha` is negative.
    """
    check_positive("beta", beta)
    check_at_least_0("alpha", alpha)
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    residual = torch.sigmoid(-margin.detach())
    return PairLoss(
        loss=-F.logsigmoid(margin) + alpha * nll(pairs.chosen, pairs.chosen_tokens, reduction="mean"),
        margin=margin.detach(),
        weight=torch.ones_like(residual),
        winner_coefficient=beta * residual + alpha / pairs.chosen_tokens,
        loser_coefficient=beta * residual,
    )


def cdpo(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.1) -> PairLoss:
    """Conservative DPO: labels are wrong with probability ε (Mitchell, 2023).

        loss = −(1 − ε) log σ(m) − ε log σ(−m),  m = β(Δ_w − Δ_l)

    Least where σ(m) = 1 − ε: from there on the pair pulls back. (TRL's `robust` is another loss: it subtracts the
    second term and divides by 1 − 2ε.)

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β.
        label_smoothing: ε, in [0, 0.5); 0 gives DPO.

    Returns:
        Loss per pair; both coefficients are β(1 − ε − a), a = σ(m), negative once a is above 1 − ε.

    Raises:
        ValueError: If `beta` is not positive or `label_smoothing` is outside [0, 0.5).
    """
    check_positive("beta", beta)
    check(0 <= label_smoothing < 0.5, "label_smoothing", label_smoothing, "at least 0 and below 0.5")
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    right = torch.sigmoid(margin.detach())
    # 1 − ε − a = (1 − ε)(1 − a) − εa, without the cancellation
    pull = beta * ((1 - label_smoothing) * torch.sigmoid(-margin.detach()) - label_smoothing * right)
    return PairLoss(
        loss=-(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin),
        margin=margin.detach(),
        weight=torch.ones_like(right),
        winner_coefficient=pull,
        loser_coefficient=pull,
    )


def dpop(pairs: PairLogps, *, beta: float = 0.3, penalty: float = 50.0) -> PairLoss:
    """DPO-positive: the winner must not fall below the reference (Pal et al., 2024).

        loss = −log σ(m),  m = β(Δ_w − Δ_l − λ · max(0, −Δ_w))

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β.
        penalty: λ; 0 gives DPO.

    Returns:
        Loss per pair; the coefficients are β(1 − a), a = σ(m), times 1 + λ on a winner below the reference.

    Raises:
        ValueError: If `beta` is not positive or `penalty` is negative.
    """
    check_positive("beta", beta)
    check_at_least_0("penalty", penalty)
    shift = pairs.chosen_shift
    margin = beta * (shift - pairs.rejected_shift - penalty * torch.relu(-shift))
    residual = beta * torch.sigmoid(-margin.detach())
    factor = 1 + penalty * (shift.detach() < 0)
    return PairLoss(
        loss=-F.logsigmoid(margin),
        margin=margin.detach(),
        weight=1 / factor,
        winner_coefficient=residual * factor,
        loser_coefficient=residual,
    )
