"""APO-down."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["APODown"]


class APODown(DPO):
    """APO-down: both down, the loser further (D'Oosterlinck et al., 2024, Eq. 8).

        loss = σ(βΔ_w) + 1 − σ(m),  m = β(Δ_w − Δ_l)

    For winners that are worse than what the model says.
    """

    name: ClassVar[str] = "apo_down"
    title: ClassVar[str] = "APO-down"
    formula: ClassVar[str] = "σ(βΔ_w) + 1 − σ(m)"
    paper: ClassVar[str] = "D'Oosterlinck et al., 2024"
    arxiv: ClassVar[str] = "2408.06266"
    note: ClassVar[str] = "for winners worse than the model's own answers"

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return both terms of each pair, added up."""
        return torch.sigmoid(self.beta * pairs.chosen_shift) + torch.sigmoid(-self.margin(pairs))
