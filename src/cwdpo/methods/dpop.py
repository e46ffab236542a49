"""DPO-positive."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Method
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["DPOP"]


class DPOP(Method):
    """DPO-positive: the winner must not fall below the reference (Pal et al., 2024).

        loss = −log σ(m),  m = β(Δ_w − Δ_l − λ · max(0, −Δ_w))

    The coefficients are β(1 − a), a = σ(m), the winner's times 1 + λ where it is below the reference.
    """

    name: ClassVar[str] = "dpop"
    title: ClassVar[str] = "DPOP"
    formula: ClassVar[str] = "−log σ(m − βλ·max(0, −Δ_w))"
    paper: ClassVar[str] = "Pal et al., 2024"
    arxiv: ClassVar[str] = "2402.13228"

    beta: float = Field(default=0.3, gt=0)
    """β: how strongly the policy is held to the reference."""
    winner_penalty: float = Field(default=50.0, ge=0)
    """λ: price of a winner below the reference; 0 is DPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(m) of each pair."""
        shift = pairs.chosen_shift
        return -F.logsigmoid(self.beta * (shift - pairs.rejected_shift - self.winner_penalty * torch.relu(-shift)))
