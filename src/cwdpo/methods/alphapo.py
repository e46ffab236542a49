"""AlphaPO."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.pair_logps import PairLogps
from cwdpo.methods.simpo import SimPO

__all__ = ["AlphaPO"]


class AlphaPO(SimPO):
    """AlphaPO: SimPO with another shape of reward (Gupta et al., 2025).

        loss = −log σ(β(r_w − r_l) − γ),  r = (1 − exp(−α ℓ̄))/α

    The coefficients are SimPO's times exp(−α ℓ̄) of each response: with α > 0 unlikely responses count more. Exponents
    are cut at 80, near the end of float32.
    """

    name: ClassVar[str] = "alphapo"
    title: ClassVar[str] = "AlphaPO"
    formula: ClassVar[str] = "−log σ(β(r_w − r_l) − γ), r = (1 − exp(−α·ℓ̄))/α"
    paper: ClassVar[str] = "Gupta et al., 2025"
    arxiv: ClassVar[str] = "2501.03884"

    alpha: float = Field(default=0.25, gt=0)
    """α: shape of the reward; towards 0 it is SimPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ of each pair's margin."""
        chosen, rejected = (self._reward(mean) for mean in (pairs.chosen_mean, pairs.rejected_mean))
        return -F.logsigmoid(self.beta * (chosen - rejected) - self.target_margin)

    def _reward(self, mean: Tensor) -> Tensor:
        return -torch.expm1((-self.alpha * mean).clamp(max=80)) / self.alpha
