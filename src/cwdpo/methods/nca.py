"""NCA on pairs."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["NCA"]


class NCA(DPO):
    """Noise contrastive alignment on pairs: the winner's likelihood is held up, not only the gap (Chen et al., 2024).

        loss = −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l),  r = βΔ

    The winner's term alone is least at σ(r_w) = ⅔, r_w = log 2: it is drawn there and no further.
    """

    name: ClassVar[str] = "nca"
    title: ClassVar[str] = "NCA"
    formula: ClassVar[str] = "−log σ(r_w) − ½·log σ(−r_w) − ½·log σ(−r_l), r = βΔ"
    paper: ClassVar[str] = "Chen et al., 2024"
    arxiv: ClassVar[str] = "2402.05369"

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the three terms of each pair, added up."""
        chosen, rejected = self.beta * pairs.chosen_shift, self.beta * pairs.rejected_shift
        return -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2
