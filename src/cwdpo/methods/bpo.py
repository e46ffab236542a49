"""BPO."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["BPO"]


class BPO(DPO):
    """Balanced preference optimisation: only the weaker side of a pair is pulled (Sun et al., 2025).

        loss = −log σ(min(βΔ_w, −α·βΔ_l))

    The winner is pulled by β(1 − a) while βΔ_w is the smaller, else the loser is pushed by αβ(1 − a). Where both are
    equal, as at the start, each gets half.
    """

    name: ClassVar[str] = "bpo"
    title: ClassVar[str] = "BPO"
    formula: ClassVar[str] = "−log σ(min(βΔ_w, −α·βΔ_l))"
    paper: ClassVar[str] = "Sun et al., 2025"
    arxiv: ClassVar[str] = "2506.03557"

    gap_adaptor: float = Field(default=0.3, gt=0, le=1)
    """α: how much the loser's fall counts beside the winner's rise."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ of each pair's weaker side."""
        weaker = torch.minimum(pairs.chosen_shift, -self.gap_adaptor * pairs.rejected_shift)
        return -F.logsigmoid(self.beta * weaker)
