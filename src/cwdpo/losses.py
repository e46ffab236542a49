"""Losses as pure functions: log-probabilities in, one value per pair or response out.

Nothing here reduces over the batch, knows a model or moves a device. Log-probabilities are natural (nats), summed over
the response tokens unless a name says `mean`. With Δ = log π_θ − log π_ref, summed, and σ the logistic function, every
pair loss reports the coefficients that its gradient puts on the two sides:

    −∇loss = winner_coefficient · ∇log π_θ(y_w) − loser_coefficient · ∇log π_θ(y_l)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "PairLogps",
    "PairLoss",
    "cooling_weight",
    "cw_dpo",
    "dpo",
    "dpo_shift",
    "label_smoothed_nll",
    "nll",
    "nll_ceiling_penalty",
    "nll_floor_penalty",
    "rpo",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogps:
    """What a pair loss needs to know of a batch of pairs (x, y_w, y_l): six tensors of one shape, `[pairs]`.

    Raises:
        ValueError: If the shapes differ (they would broadcast in silence), or a log-probability is not float32 or
            float64 (in bfloat16 a sum of −72 nats is rounded to the nearest half nat).
    """

    chosen: Tensor
    """log π_θ(y_w | x), nats, summed over response tokens."""
    rejected: Tensor
    """log π_θ(y_l | x), nats, summed over response tokens."""
    reference_chosen: Tensor
    """log π_ref(y_w | x), nats, summed over response tokens; carries no gradient."""
    reference_rejected: Tensor
    """log π_ref(y_l | x), nats, summed over response tokens; carries no gradient."""
    chosen_tokens: Tensor
    """Response tokens of y_w, at least 1."""
    rejected_tokens: Tensor
    """Response tokens of y_l, at least 1."""

    def __post_init__(self) -> None:
        for name in ("rejected", "reference_chosen", "reference_rejected", "chosen_tokens", "rejected_tokens"):
            shape = getattr(self, name).shape
            if shape != self.chosen.shape:
                raise ValueError(f"{name}: shape {tuple(shape)}, must be that of chosen, {tuple(self.chosen.shape)}")
        for name in ("chosen", "rejected", "reference_chosen", "reference_rejected"):
            dtype = getattr(self, name).dtype
            if dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name}: dtype {dtype}, must be torch.float32 or torch.float64")

    @property
    def chosen_shift(self) -> Tensor:
        """Δ_w = log π_θ(y_w | x) − log π_ref(y_w | x), nats, `[pairs]`."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_shift(self) -> Tensor:
        """Δ_l = log π_θ(y_l | x) − log π_ref(y_l | x), nats, `[pairs]`."""
        return self.rejected - self.reference_rejected

    @property
    def chosen_mean(self) -> Tensor:
        """ℓ̄_θ(y_w | x), nats per token, `[pairs]`."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """ℓ̄_θ(y_l | x), nats per token, `[pairs]`."""
        return self.rejected / self.rejected_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLoss:
    """A loss per pair and what drives it; every field is `[pairs]`, all but `loss` are detached."""

    loss: Tensor
    """The value to average and differentiate."""
    margin: Tensor
    """The logit m inside −log σ(m); σ(m) is the paper's a (or a′)."""
    weight: Tensor
    """The factor w on Δ_l inside the margin, relative to Δ_w: w_c for CW-DPO, 1 for DPO."""
    winner_coefficient: Tensor
    """−∂loss / ∂log π_θ(y_w): how hard the step pulls the winner up."""
    loser_coefficient: Tensor
    """∂loss / ∂log π_θ(y_l): how hard the step pushes the loser down; negative where it pulls it up."""


def cooling_weight(logp_mean: Tensor, *, floor: float = -3.0, tau: float = 1.0, w_min: float = 0.0) -> Tensor:
    """Weigh the loser by how likely the policy finds it (Eq. 6).

        w_c = w_min + (1 − w_min) · σ((ℓ̄_θ(y_l | x) − ℓ_floor) / τ)

    With w_min = 0 it is 0.5 at the floor and, because ℓ̄ ≤ 0, never above σ(−ℓ_floor / τ): 0.953 for the defaults.
    Gradients flow through it; `cw_dpo` decides whether to detach.

    Args:
        logp_mean: ℓ̄_θ(y_l | x), nats per token, any shape.
        floor: ℓ_floor, nats per token; well below it a negative counts as easy.
        tau: Temperature τ, nats per token; small is a switch, large is a constant.
        w_min: Lower bound of the weight (ours: the paper has 0); 1 gives DPO.

    Returns:
        Weights between `w_min` and 1, of the shape of `logp_mean`.

    Raises:
        ValueError: If `floor` is not finite, `tau` is not positive or `w_min` is outside [0, 1].
    """
    _check_cooling(floor=floor, tau=tau, w_min=w_min)
    return w_min + (1 - w_min) * torch.sigmoid((logp_mean - floor) / tau)


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
    _check_positive("beta", beta)
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    residual = torch.sigmoid(-margin.detach())  # 1 − a, without the cancellation
    return PairLoss(
        loss=-F.logsigmoid(margin),
        margin=margin.detach(),
        weight=torch.ones_like(residual),
        winner_coefficient=beta * residual,
        loser_coefficient=beta * residual,
    )


def cw_dpo(
    pairs: PairLogps,
    *,
    beta: float = 0.1,
    floor: float = -3.0,
    tau: float = 1.0,
    w_min: float = 0.0,
    detach: bool = True,
    renormalise: bool = False,
) -> PairLoss:
    """Cooling-weighted DPO (Eq. 7, gradient Eq. 8).

        loss = −log σ(m′),  m′ = β(Δ_w − w_c · Δ_l),  w_c as in `cooling_weight`

    Attached (`detach=False`), the loser's coefficient gains the factor 1 + Δ_l(1 − w_c) / (τL) (for w_min = 0), which
    turns negative far below the reference: the loss then pulls such losers up.

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β. The paper gives no value.
        floor: ℓ_floor, nats per token.
        tau: Temperature τ, nats per token.
        w_min: Lower bound of w_c; an option of ours, 0 is the paper.
        detach: Stop gradients through w_c, as the paper does.
        renormalise: An option of ours, not the paper's: multiply m′ by 2 / (1 + w_c), that w_c always detached, so that
            the two coefficients add up to 2β(1 − a′) as DPO's do (exactly when w_c is detached).

    Returns:
        Loss per pair; the coefficients are β(1 − a′) and w_c · β(1 − a′), a′ = σ(m′), times the factors above.

    Raises:
        ValueError: If `beta` or `tau` is not positive, `floor` is not finite or `w_min` is outside [0, 1].
    """
    _check_positive("beta", beta)
    weight = cooling_weight(pairs.rejected_mean, floor=floor, tau=tau, w_min=w_min)
    if detach:
        weight = weight.detach()
    scale = beta * 2 / (1 + weight.detach()) if renormalise else beta
    margin = scale * (pairs.chosen_shift - weight * pairs.rejected_shift)
    residual = scale * torch.sigmoid(-margin.detach())  # β(1 − a′)

    rejected_factor = weight.detach()
    if not detach:
        with torch.no_grad():
            # ∂w_c/∂log π(y_l) = (1 − w_min) · s(1 − s) / (τL) = (w_c − w_min)(1 − s) / (τL), s the sigmoid.
            easiness = torch.sigmoid((floor - pairs.rejected_mean) / tau)
            slope = (weight - w_min) * easiness / (tau * pairs.rejected_tokens)
            rejected_factor = weight + pairs.rejected_shift * slope
    return PairLoss(
        loss=-F.logsigmoid(margin),
        margin=margin.detach(),
        weight=weight.detach(),
        winner_coefficient=residual,
        loser_coefficient=residual * rejected_factor,
    )


def dpo_shift(pairs: PairLogps, *, beta: float = 0.1, weight: float = 0.5) -> PairLoss:
    """DPO with a constant weight on the loser (DPO-Shift; "w/o cooling weight" in the paper's Table 2).

        loss = −log σ(m),  m = β(Δ_w − f · Δ_l)

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β.
        weight: f; 1 gives DPO.

    Returns:
        Loss per pair; the coefficients are β(1 − a) and f · β(1 − a), a = σ(m).

    Raises:
        ValueError: If `beta` is not positive or `weight` is outside [0, 1].
    """
    _check_positive("beta", beta)
    _check_share("weight", weight)
    margin = beta * (pairs.chosen_shift - weight * pairs.rejected_shift)
    residual = torch.sigmoid(-margin.detach())
    return PairLoss(
        loss=-F.logsigmoid(margin),
        margin=margin.detach(),
        weight=torch.full_like(residual, weight),
        winner_coefficient=beta * residual,
        loser_coefficient=weight * beta * residual,
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
    _check_positive("beta", beta)
    _check(alpha >= 0 and math.isfinite(alpha), "alpha", alpha, "finite and at least 0")
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    residual = torch.sigmoid(-margin.detach())
    return PairLoss(
        loss=-F.logsigmoid(margin) + alpha * nll(pairs.chosen, pairs.chosen_tokens, reduction="mean"),
        margin=margin.detach(),
        weight=torch.ones_like(residual),
        winner_coefficient=beta * residual + alpha / pairs.chosen_tokens,
        loser_coefficient=beta * residual,
    )


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
    _check(math.isfinite(floor), "floor", floor, "finite")
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
    _check(math.isfinite(ceiling), "ceiling", ceiling, "finite")
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
    _check_share("epsilon", epsilon)
    return (1 - epsilon) * nll_mean + epsilon * uniform_nll_mean


def _check(holds: bool, key: str, value: float, rule: str) -> None:
    if not holds:
        raise ValueError(f"{key} = {value!r}: must be {rule}")


def _check_positive(key: str, value: float) -> None:
    _check(value > 0 and math.isfinite(value), key, value, "finite and above 0")


def _check_share(key: str, value: float) -> None:
    _check(0 <= value <= 1, key, value, "between 0 and 1")


def _check_cooling(*, floor: float, tau: float, w_min: float) -> None:
    _check(math.isfinite(floor), "floor", floor, "finite")
    _check_positive("tau", tau)
    _check_share("w_min", w_min)
