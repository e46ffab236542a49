"""EXO on pairs."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["EXO"]


class EXO(DPO):
    """EXO on pairs: the reverse KL to the labels, where DPO is the forward one (Ji et al., 2024, Eq. 16).

        loss = KL(q ‖ p),  q = (σ(m), σ(−m)),  p = (1 − ε, ε),  m = β(Δ_w − Δ_l)

    It is least, 0, at σ(m) = 1 − ε. A pair ranked badly (m ≪ 0) is pulled less the worse it is ranked.
    """

    name: ClassVar[str] = "exo"
    title: ClassVar[str] = "EXO"
    formula: ClassVar[str] = "KL((σ(m), σ(−m)) ‖ (1 − ε, ε))"
    paper: ClassVar[str] = "Ji et al., 2024"
    arxiv: ClassVar[str] = "2402.00856"

    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5)
    """ε: probability that a pair is labelled the wrong way round; the KL needs it above 0."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the KL of each pair."""
        margin, epsilon = self.margin(pairs), self.label_smoothing
        right = margin.sigmoid() * (F.logsigmoid(margin) - math.log1p(-epsilon))
        return right + (-margin).sigmoid() * (F.logsigmoid(-margin) - math.log(epsilon))
