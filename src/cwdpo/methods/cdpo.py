"""Conservative DPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["CDPO"]


class CDPO(DPO):
    """Conservative DPO: labels are wrong with probability ε (Mitchell, 2023).

        loss = −(1 − ε) log σ(m) − ε log σ(−m),  m = β(Δ_w − Δ_l)

    Both coefficients are β(1 − ε − a), a = σ(m): beyond a = 1 − ε a pair pulls back. (TRL's `robust` is another loss:
    it subtracts the second term and divides by 1 − 2ε.)
    """

    name: ClassVar[str] = "cdpo"
    title: ClassVar[str] = "cDPO"
    formula: ClassVar[str] = "−(1 − ε)·log σ(m) − ε·log σ(−m)"
    paper: ClassVar[str] = "Mitchell, 2023 (ericmitchell.ai/cdpo.pdf)"
    arxiv: ClassVar[str] = ""

    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """ε: probability that a pair is labelled the wrong way round; 0 is DPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the expected −log σ(±m) of each pair."""
        margin, epsilon = self.margin(pairs), self.label_smoothing
        return -(1 - epsilon) * F.logsigmoid(margin) - epsilon * F.logsigmoid(-margin)
