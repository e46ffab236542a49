"""FocalPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["FocalPO"]


class FocalPO(DPO):
    """FocalPO: pairs that are ranked right count more (Liu et al., 2025).

        loss = −p^γ log p,  p = σ(m),  m = β(Δ_w − Δ_l)

    Both coefficients are β p^γ (1 − p)(1 + γ log p), negative for pairs ranked so badly that log p < −1/γ: these are
    given up.
    """

    name: ClassVar[str] = "focalpo"
    title: ClassVar[str] = "FocalPO"
    formula: ClassVar[str] = "−p^γ·log p, p = σ(m)"
    paper: ClassVar[str] = "Liu et al., 2025"
    arxiv: ClassVar[str] = "2501.06645"

    focus: float = Field(default=0.05, ge=0)
    """γ: how much more a well-ranked pair counts; 0 is DPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −p^γ log p of each pair."""
        log_p = F.logsigmoid(self.margin(pairs))
        return -(self.focus * log_p).exp() * log_p
