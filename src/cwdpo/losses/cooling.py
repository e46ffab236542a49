"""CW-DPO and its weight, and the fixed weight that it is compared with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cwdpo.losses.checks import check, check_positive, check_share
from cwdpo.losses.pairs import PairLogps, PairLoss, SpanLogps

__all__ = ["cooling_weight", "cw_dpo", "dpo_shift"]


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
    check(math.isfinite(floor), "floor", floor, "finite")
    check_positive("tau", tau)
    check_share("w_min", w_min)
    return w_min + (1 - w_min) * torch.sigmoid((logp_mean - floor) / tau)


def cw_dpo(
    pairs: PairLogps,
    *,
    beta: float = 0.1,
    floor: float = -3.0,
    tau: float = 1.0,
    w_min: float = 0.0,
    detach: bool = True,
    renormalise: bool = False,
    bound_pull: bool = False,
) -> PairLoss:
    """Cooling-weighted DPO (Eq. 7, gradient Eq. 8), and remedies of ours for what it does beside cooling.

        loss = −log σ(m′),  m′ = β(Δ_w − w_c · Δ_l),  w_c as in `cooling_weight`

    Attached (`detach=False`), the loser's coefficient gains the factor 1 + Δ_l(1 − w_c) / (τL) (for w_min = 0), which
    turns negative far below the reference: the loss then pulls such losers up.

    With `pairs.rejected_span` (an option of ours) only the tokens in which y_l differs from y_w are cooled, by their
    own mean log-probability; those that both share keep weight 1, and cancel against the winner's as in DPO:

        m′ = β(Δ_w − (Δ_l − Δ_s) − w_c · Δ_s),  w_c from ℓ̄_θ of the span s

    Args:
        pairs: Log-probabilities of the pairs.
        beta: β. The paper gives no value.
        floor: ℓ_floor, nats per token.
        tau: Temperature τ, nats per token.
        w_min: Lower bound of w_c; an option of ours, 0 is the paper.
        detach: Stop gradients through w_c, as the paper does.
        renormalise: An option of ours, not the paper's: multiply m′ by 2 / (1 + w_c), that w_c always detached, so that
            the two coefficients add up to 2β(1 − a′) as DPO's do (exactly when w_c is detached).
        bound_pull: An option of ours: scale the pair down, by a detached factor, wherever the winner would be pulled
            harder than by DPO, so that the coefficients are at most β(1 − a) and w_c · β(1 − a) with DPO's a.

    Returns:
        Loss per pair; the coefficients are β(1 − a′) and w_c · β(1 − a′), a′ = σ(m′), times the factors above. With a
        span the loser's is that on the span's tokens; the others' is the winner's.

    Raises:
        ValueError: If `beta` or `tau` is not positive, `floor` is not finite or `w_min` is outside [0, 1].
    """
    check_positive("beta", beta)
    span = pairs.rejected_span or SpanLogps(
        logp=pairs.rejected, reference=pairs.reference_rejected, tokens=pairs.rejected_tokens
    )
    span_mean, span_shift = span.logp / span.tokens, span.logp - span.reference
    weight = cooling_weight(span_mean, floor=floor, tau=tau, w_min=w_min)
    if detach:
        weight = weight.detach()
    scale = beta * 2 / (1 + weight.detach()) if renormalise else torch.full_like(weight.detach(), beta)
    kept = pairs.chosen_shift
    if pairs.rejected_span is not None:
        kept = kept - (pairs.rejected_shift - span_shift)  # what both share
    margin = scale * (kept - weight * span_shift)
    loss = -F.logsigmoid(margin)
    residual = scale * torch.sigmoid(-margin.detach())  # β(1 − a′)
    if bound_pull:
        plain = beta * (pairs.chosen_shift - pairs.rejected_shift).detach()
        ours = F.logsigmoid(-margin.detach()) + (scale / beta).log()
        bound = (F.logsigmoid(-plain) - ours).clamp(max=0).exp()  # (1 − a) / (1 − a′), at most 1
        loss, residual = bound * loss, bound * residual

    rejected_factor = weight.detach()
    if not detach:
        with torch.no_grad():
            # ∂w_c/∂log π(y_l) = (1 − w_min) · s(1 − s) / (τL) = (w_c − w_min)(1 − s) / (τL), s the sigmoid.
            easiness = torch.sigmoid((floor - span_mean) / tau)
            slope = (weight - w_min) * easiness / (tau * span.tokens)
            rejected_factor = weight + span_shift * slope
    return PairLoss(
        loss=loss,
        margin=margin.detach(),
        weight=weight.detach(),
        winner_coefficient=residual,
        loser_coefficient=residual * rejected_factor,
    )


def dpo_shift(pairs: PairLogps, *, beta: float = 0.1, weight: float = 0.5) -> PairLoss:
    """DPO with a constant weight on the loser (DPO-Shift, Yang et al., 2025; "w/o cooling weight" in Table 2).

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
    check_positive("beta", beta)
    check_share("weight", weight)
    margin = beta * (pairs.chosen_shift - weight * pairs.rejected_shift)
    residual = torch.sigmoid(-margin.detach())
    return PairLoss(
        loss=-F.logsigmoid(margin),
        margin=margin.detach(),
        weight=torch.full_like(residual, weight),
        winner_coefficient=beta * residual,
        loser_coefficient=weight * beta * residual,
    )
