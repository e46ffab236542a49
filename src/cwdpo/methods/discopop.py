"""DiscoPOP."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["DiscoPOP"]


class DiscoPOP(DPO):
    """DiscoPOP: a loss that a language model found (Lu et al., 2024, Eq. 5).

        loss = −(1 − s) log σ(m) + s e⁻ᵐ,  s = σ(m/τ),  m = β(Δ_w − Δ_l)

    Logistic for pairs ranked badly, exponential for those ranked well; not convex where they meet.
    """

    name: ClassVar[str] = "discopop"
    title: ClassVar[str] = "DiscoPOP"
    formula: ClassVar[str] = "−(1 − s)·log σ(m) + s·e⁻ᵐ, s = σ(m/τ)"
    paper: ClassVar[str] = "Lu et al., 2024"
    arxiv: ClassVar[str] = "2406.08414"

    blend_width: float = Field(default=0.05, gt=0, le=1)
    """τ: how sharply the two are told apart."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the blend of each pair."""
        margin = self.margin(pairs)
        share = torch.sigmoid(margin / self.blend_width)
        # σ(m/τ)·e⁻ᵐ = exp(log σ(m/τ) − m): finite where m ≪ 0, while its factors are 0 and ∞.
        return (F.logsigmoid(margin / self.blend_width) - margin).exp() - (1 - share) * F.logsigmoid(margin)
