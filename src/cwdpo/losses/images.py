"""Losses that also score a response under an altered image: what is said must follow from what is seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cwdpo.losses.checks import check_at_least_0, check_positive
from cwdpo.losses.pairs import PairLogps, PairLoss

__all__ = ["mdpo", "opa_dpo", "v_dpo"]


def mdpo(pairs: PairLogps, altered_chosen_shift: Tensor, *, beta: float = 0.1) -> PairLoss:
    """mDPO: DPO, the winner preferred under its own image to a cropped one, and an anchor (Wang et al., 2024).

        loss = −log σ(m) − log σ(β(Δ_w − Δ̃_w)) − log σ(βΔ_w),  m = β(Δ_w − Δ_l)

    Args:
        pairs: Log-probabilities of the pairs under their own image.
        altered_chosen_shift: Δ̃_w, nats: Δ_w with the cropped image under policy and reference alike, `[pairs]`.
        beta: β.

    Returns:
        Loss per pair; the coefficients are those on responses under their own image: the winner's adds the three
        pulls, the loser's is DPO's. (On the winner under the cropped image it is minus the second pull.)

    Raises:
        ValueError: If `beta` is not positive.
    """
    return _with_image_terms(pairs, altered_chosen_shift, beta=beta, image_weight=1.0, anchor_weight=1.0)


def opa_dpo(
    pairs: PairLogps,
    altered_chosen_shift: Tensor,
    *,
    beta: float = 0.1,
    image_weight: float = 0.2,
    anchor_weight: float = 1.0,
) -> PairLoss:
    """The preference losses of OPA-DPO, for one winner (Yang et al., 2025).

        loss = −log σ(m) − μ log σ(β(Δ_w − Δ̃_w)) − α log σ(βΔ_w),  m = β(Δ_w − Δ_l)

    Δ̃_w is under the image with a part masked. The method has two winners a prompt, the gold answer and the model's own
    in its least revision: each gives pairs of its own. The sums run over whole responses and the anchor is positive,
    as the paper writes it; the released code pairs tokens by position and negates two anchors.

    Args:
        pairs: Log-probabilities of the pairs under their own image.
        altered_chosen_shift: Δ̃_w, nats, `[pairs]`.
        beta: β.
        image_weight: μ.
        anchor_weight: α.

    Returns:
        Loss per pair; coefficients as in `mdpo`.

    Raises:
        ValueError: If `beta` is not positive or a weight is negative.
    """
    check_at_least_0("image_weight", image_weight)
    check_at_least_0("anchor_weight", anchor_weight)
    return _with_image_terms(
        pairs, altered_chosen_shift, beta=beta, image_weight=image_weight, anchor_weight=anchor_weight
    )


def _with_image_terms(
    pairs: PairLogps, altered: Tensor, *, beta: float, image_weight: float, anchor_weight: float
) -> PairLoss:
    check_positive("beta", beta)
    if altered.shape != pairs.chosen.shape:
        raise ValueError(f"altered_chosen_shift: shape {tuple(altered.shape)}, must be {tuple(pairs.chosen.shape)}")
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    seen = beta * (pairs.chosen_shift - altered)
    anchor = beta * pairs.chosen_shift
    loss = -F.logsigmoid(margin) - image_weight * F.logsigmoid(seen) - anchor_weight * F.logsigmoid(anchor)
    with torch.no_grad():
        ranked = torch.sigmoid(-margin)
        pulls = ranked + image_weight * torch.sigmoid(-seen) + anchor_weight * torch.sigmoid(-anchor)
    return PairLoss(
        loss=loss,
        margin=margin.detach(),
        weight=torch.ones_like(ranked),
        winner_coefficient=beta * pulls,
        loser_coefficient=beta * ranked,
    )


def v_dpo(
    pairs: PairLogps,
    null_chosen: Tensor,
    null_rejected: Tensor,
    *,
    beta: float = 0.1,
    guidance: float = 1.5,
    detach_null: bool = True,
) -> PairLoss:
    """V-DPO: the policy is guided away from what it says without seeing the image (Xie et al., 2024).

        log p̂ = γ log π_θ(y | x) − (γ − 1) log π_θ(y | x without its image)
        loss = −log σ(m),  m = β[(log p̂_w − log π_ref,w) − (log p̂_l − log π_ref,l)]

    The released script sets γ = 0, where nothing of the policy under its image is left to learn from.

    Args:
        pairs: Log-probabilities of the pairs under their own image.
        null_chosen: log π_θ(y_w | x without its image), nats, summed, `[pairs]`.
        null_rejected: log π_θ(y_l | x without its image), nats, summed, `[pairs]`.
        beta: β.
        guidance: γ; 1 gives DPO.
        detach_null: No gradient through the pass without image.

    Returns:
        Loss per pair; both coefficients (on responses under their own image) are γβ(1 − a), a = σ(m).

    Raises:
        ValueError: If `beta` or `guidance` is not positive.
    """
    check_positive("beta", beta)
    check_positive("guidance", guidance)
    if detach_null:
        null_chosen, null_rejected = null_chosen.detach(), null_rejected.detach()
    chosen = guidance * pairs.chosen - (guidance - 1) * null_chosen
    rejected = guidance * pairs.rejected - (guidance - 1) * null_rejected
    margin = beta * ((chosen - pairs.reference_chosen) - (rejected - pairs.reference_rejected))
    pull = guidance * beta * torch.sigmoid(-margin.detach())
    return PairLoss(
        loss=-F.logsigmoid(margin),
        margin=margin.detach(),
        weight=torch.ones_like(pull),
        winner_coefficient=pull,
        loser_coefficient=pull,
    )
