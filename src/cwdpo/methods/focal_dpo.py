"""DPO with the focal loss."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["FocalDPO"]


class FocalDPO(DPO):
    """DPO with the focal loss (Lin et al., 2017): well-ranked pairs count less. The paper's "Focal-DPO".

        loss = −(1 − p)^γ log p,  p = σ(m),  m = β(Δ_w − Δ_l)

    Both coefficients are β(1 − p)^γ (1 − p − γ p log p). The paper names no γ; 2 is that of the focal loss. `focalpo`
    does the reverse.
    """

    name: ClassVar[str] = "focal_dpo"
    title: ClassVar[str] = "Focal-DPO"
    formula: ClassVar[str] = "−(1 − p)^γ·log p, p = σ(m)"
    paper: ClassVar[str] = "Lin et al., 2017 (the focal loss)"
    arxiv: ClassVar[str] = "1708.02002"

    focus: float = Field(default=2.0, ge=0)
    """γ: how much less a well-ranked pair counts; 0 is DPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −(1 − p)^γ log p of each pair."""
        margin = self.margin(pairs)
        log_p, log_q = F.logsigmoid(margin), F.logsigmoid(-margin)
        return -(self.focus * log_q).exp() * log_p
