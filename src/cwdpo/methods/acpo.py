"""ACPO."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["ACPO"]


class ACPO(DPO):
    """Asymmetric constrained preference optimisation: the loser counts as a target asks (Huang et al., 2026).

        loss = −log σ(r_w − α r_l),  α = (r_w − τ)/r_l in [0, 1], detached,  τ = δ(L_w + L_l),  r = βΔ

    α is what brings the margin to τ: a pair whose winner has reached τ by itself pushes its loser no more. The formula
    is known here from a review of the paper, whose code is not public. What we chose: α is detached and held to [0, 1],
    τ is each pair's own (the paper's is a batch's), δ is ours, and where r_l ≥ 0, as at the start, α = 1 (DPO).
    """

    name: ClassVar[str] = "acpo"
    title: ClassVar[str] = "ACPO"
    formula: ClassVar[str] = "−log σ(r_w − α·r_l), α = (r_w − δ(L_w + L_l))/r_l in [0, 1]"
    paper: ClassVar[str] = "Huang et al., 2026"
    arxiv: ClassVar[str] = "2603.22165"

    target_per_token: float = Field(default=0.02, gt=0)
    """δ: reward to reach for each token of both responses."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(r_w − α r_l) of each pair."""
        chosen, rejected = self.beta * pairs.chosen_shift, self.beta * pairs.rejected_shift
        target = self.target_per_token * (pairs.chosen_tokens + pairs.rejected_tokens)
        below = rejected.detach() < 0
        safe = torch.where(below, rejected.detach(), -torch.ones_like(rejected))
        weight = torch.where(below, ((chosen.detach() - target) / safe).clamp(0, 1), torch.ones_like(rejected))
        return -F.logsigmoid(chosen - weight * rejected)
