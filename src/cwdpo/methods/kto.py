"""KTO on pairs."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["KTO"]


class KTO(DPO):
    """KTO on the two responses of a pair, each judged by itself (Ethayarajh et al., 2024, Eq. 7).

        loss = λ_w(1 − σ(βΔ_w − βz₀)) + λ_l(1 − σ(βz₀ − βΔ_l))

    z₀ estimates the policy's divergence from the reference. The paper takes responses of other prompts for it;
    `reference_point: batch` takes those of the update, z₀ = max(0, mean Δ), detached, so that an update must be one
    micro-batch. With `zero` and both weights 1 it is `apo_zero` (TRL: `apo_zero_unpaired`). TRL's loss is a mean over
    responses, half of ours over pairs. A prompt with good or bad answers only makes no pair and is not trained on.
    """

    name: ClassVar[str] = "kto"
    title: ClassVar[str] = "KTO"
    formula: ClassVar[str] = "λ_w(1 − σ(β(Δ_w − z₀))) + λ_l(1 − σ(β(z₀ − Δ_l)))"
    paper: ClassVar[str] = "Ethayarajh et al., 2024"
    arxiv: ClassVar[str] = "2402.01306"
    note: ClassVar[str] = "on pairs; reference_point: batch needs micro_batch_size = batch_size"

    reference_point: Literal["zero", "batch"] = "zero"
    """z₀: 0, or the mean Δ of all responses of an update where it is above 0."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """λ_w: weight of chosen responses."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """λ_l: weight of rejected responses."""

    @property
    def needs(self) -> Needs:
        """All pairs of an update at once, if z₀ is theirs."""
        return Needs(whole_batch=self.reference_point == "batch")

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return both terms of each pair, added up."""
        point = torch.zeros_like(pairs.chosen[:1])
        if self.reference_point == "batch":
            point = torch.cat([pairs.chosen_shift, pairs.rejected_shift]).mean().clamp(min=0).detach()
        desirable = torch.sigmoid(self.beta * (point - pairs.chosen_shift))
        undesirable = torch.sigmoid(self.beta * (pairs.rejected_shift - point))
        return self.desirable_weight * desirable + self.undesirable_weight * undesirable
