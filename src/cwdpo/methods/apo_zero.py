"""APO-zero."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["APOZero"]


class APOZero(DPO):
    """APO-zero: the winner up, the loser down, each by itself (D'Oosterlinck et al., 2024, Eq. 7).

        loss = 1 − σ(βΔ_w) + σ(βΔ_l)

    For winners that are better than what the model says. The coefficients are βσ(1 − σ), largest at the reference.
    """

    name: ClassVar[str] = "apo_zero"
    title: ClassVar[str] = "APO-zero"
    formula: ClassVar[str] = "1 − σ(βΔ_w) + σ(βΔ_l)"
    paper: ClassVar[str] = "D'Oosterlinck et al., 2024"
    arxiv: ClassVar[str] = "2408.06266"
    note: ClassVar[str] = "for winners better than the model's own answers"

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return both terms of each pair, added up."""
        return torch.sigmoid(-self.beta * pairs.chosen_shift) + torch.sigmoid(self.beta * pairs.rejected_shift)
