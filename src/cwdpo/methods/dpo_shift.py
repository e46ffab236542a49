"""DPO with a fixed weight on the loser."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["DPOShift"]


class DPOShift(DPO):
    """DPO-Shift (Yang et al., 2025); "w/o cooling weight" in Table 2.

        loss = −log σ(m),  m = β(Δ_w − f · Δ_l)

    The coefficients are β(1 − a) and f · β(1 − a), a = σ(m).
    """

    name: ClassVar[str] = "dpo_shift"
    title: ClassVar[str] = "DPO-Shift"
    formula: ClassVar[str] = "−log σ(β(Δ_w − f·Δ_l))"
    paper: ClassVar[str] = "Yang et al., 2025"
    arxiv: ClassVar[str] = "2502.07599"

    shift_weight: float = Field(default=0.5, ge=0, le=1)
    """f: fixed weight of the loser; 1 is DPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(m) of each pair."""
        return -F.logsigmoid(self.beta * (pairs.chosen_shift - self.shift_weight * pairs.rejected_shift))
