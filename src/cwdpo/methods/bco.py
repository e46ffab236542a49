"""BCO on pairs: winner and loser are each told apart from a threshold, not from each other."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["BCO"]


class BCO(DPO):
    """Binary classifier optimisation on pairs (Jung et al., 2024); with DPO and NLL it is InternVL's MPO.

        loss = −log σ(βΔ_w − δ) − log σ(−(βΔ_l − δ))

    δ is a setting here: a running mean of the rewards would make the loss depend on how a batch is cut.
    """

    name: ClassVar[str] = "bco"
    title: ClassVar[str] = "BCO"
    formula: ClassVar[str] = "−log σ(βΔ_w − δ) − log σ(−(βΔ_l − δ))"
    paper: ClassVar[str] = "Jung et al., 2024"
    arxiv: ClassVar[str] = "2404.04656"

    threshold: float = 0.0
    """δ: the reward above which a response counts as good; 0 is the reference's."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return both terms of each pair, added up."""
        chosen, rejected = self.beta * pairs.chosen_shift, self.beta * pairs.rejected_shift
        return -F.logsigmoid(chosen - self.threshold) - F.logsigmoid(self.threshold - rejected)
