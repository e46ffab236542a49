"""Robust DPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["Robust"]


class Robust(DPO):
    """Robust DPO: unbiased under labels that are wrong with probability ε (Chowdhury et al., 2024).

        loss = [−(1 − ε) log σ(m) + ε log σ(−m)] / (1 − 2ε),  m = β(Δ_w − Δ_l)

    Both coefficients are β(1 − a) + βε/(1 − 2ε), a = σ(m): where cDPO pulls a well-ranked pair back, this pushes on.
    """

    name: ClassVar[str] = "robust"
    title: ClassVar[str] = "Robust DPO"
    formula: ClassVar[str] = "[−(1 − ε)·log σ(m) + ε·log σ(−m)]/(1 − 2ε)"
    paper: ClassVar[str] = "Chowdhury et al., 2024"
    arxiv: ClassVar[str] = "2403.00409"

    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """ε: probability that a pair is labelled the wrong way round; 0 is DPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the unbiased estimate for each pair."""
        margin, epsilon = self.margin(pairs), self.label_smoothing
        clean, flipped = F.logsigmoid(margin), F.logsigmoid(-margin)
        return (epsilon * flipped - (1 - epsilon) * clean) / (1 - 2 * epsilon)
