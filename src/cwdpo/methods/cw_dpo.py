"""CW-DPO: the paper's Stage 2."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.cooling import Cooling, cooling_weight
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps, SpanLogps

__all__ = ["CWDPO"]


class CWDPO(Cooling, DPO):
    """Cooling-weighted DPO (Eq. 7, gradient Eq. 8), and remedies of ours for what it does beside cooling.

        loss = −log σ(m′),  m′ = β(Δ_w − w_c · Δ_l),  w_c = σ((ℓ̄_θ(y_l) − ℓ_floor) / τ), detached

    The coefficients are β(1 − a′) and w_c · β(1 − a′), a′ = σ(m′). Attached (`detach: false`), the loser's gains the
    factor 1 + Δ_l(1 − w_c) / (τL) (for w_min = 0), which turns negative far below the reference: the loss then pulls
    such losers up.

    With `cooling_span: differing` only the tokens in which y_l differs from y_w are cooled, by their own mean
    log-probability; shared ones keep weight 1 and cancel against the winner's as in DPO:

        m′ = β(Δ_w − (Δ_l − Δ_s) − w_c · Δ_s),  w_c from ℓ̄_θ of the span s
    """

    name: ClassVar[str] = "cw_dpo"
    title: ClassVar[str] = "CW-DPO"
    formula: ClassVar[str] = "−log σ(β(Δ_w − w_c·Δ_l)), w_c = σ((ℓ̄(y_l) − floor)/τ)"
    paper: ClassVar[str] = "Zhang et al., CVPR 2026"
    arxiv: ClassVar[str] = "2510.11978"
    note: ClassVar[str] = "w_min, renormalise, bound_pull and cooling_span are ours"

    detach: bool = True
    """No gradient through the cooling weight, as in Eq. 8."""
    w_min: float = Field(default=0.0, ge=0, le=1)
    """Smallest cooling weight: above 0 some ranking signal stays on cold negatives; 1 is DPO."""
    renormalise: bool = False
    """Scale the margin by 2/(1 + w_c), so that the pulls on winner and loser add up to DPO's (ours)."""
    bound_pull: bool = False
    """Scale a pair down where its winner would be pulled harder than by DPO (ours)."""
    cooling_span: Literal["response", "differing"] = "response"
    """What is cooled: the whole loser, or (ours) only its tokens from the first to the last that differ from the
    winner's, by their own mean log-probability."""

    @property
    def needs(self) -> Needs:
        """Where the loser differs, if only that is cooled."""
        return Needs(span=self.cooling_span == "differing")

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(m′) of each pair."""
        span = pairs.span or SpanLogps(
            logp=pairs.rejected, reference=pairs.reference_rejected, tokens=pairs.rejected_tokens
        )
        span_mean, span_shift = span.logp / span.tokens, span.logp - span.reference
        weight = cooling_weight(span_mean, floor=self.floor, tau=self.tau, w_min=self.w_min)
        if self.detach:
            weight = weight.detach()
        scale = torch.full_like(weight.detach(), self.beta)
        if self.renormalise:
            scale = self.beta * 2 / (1 + weight.detach())
        uncooled = pairs.chosen_shift
        if pairs.span is not None:
            uncooled = uncooled - (pairs.rejected_shift - span_shift)  # the tokens that both share
        margin = scale * (uncooled - weight * span_shift)
        loss = -F.logsigmoid(margin)
        if self.bound_pull:
            dpo = F.logsigmoid(-self.margin(pairs).detach())
            ours = F.logsigmoid(-margin.detach()) + (scale / self.beta).log()
            loss = (dpo - ours).clamp(max=0).exp() * loss  # (1 − a) / (1 − a′), at most 1
        return loss
