"""Bounded DPO."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["BDPO"]


class BDPO(DPO):
    """Bounded DPO: the loser's term cannot fall without end (Cho et al., 2025).

        loss = −log σ(β(Δ_w − log(λe^Δ_l + 1 − λ)))

    That is DPO with π_mix(y_l) = λπ_θ(y_l) + (1 − λ)π_ref(y_l) for the policy; the term is never below log(1 − λ). The
    loser's coefficient is DPO's times λe^Δ_l/(λe^Δ_l + 1 − λ): λ at the reference, 0 far below it. The mixture is of
    whole responses; the paper's text was not read beyond its abstract, nor is its λ known here.
    """

    name: ClassVar[str] = "bdpo"
    title: ClassVar[str] = "BDPO"
    formula: ClassVar[str] = "−log σ(β(Δ_w − log(λ·e^Δ_l + 1 − λ)))"
    paper: ClassVar[str] = "Cho et al., 2025"
    arxiv: ClassVar[str] = "2506.12725"

    policy_share: float = Field(default=0.5, gt=0, lt=1)
    """λ: share of the policy in the mixture; towards 1 it is DPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ of each pair's bounded margin."""
        shift = pairs.rejected_shift
        rest = torch.full_like(shift, math.log1p(-self.policy_share))
        bounded = torch.logaddexp(shift + math.log(self.policy_share), rest)
        return -F.logsigmoid(self.beta * (pairs.chosen_shift - bounded))
