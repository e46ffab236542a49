"""WPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["WPO"]


class WPO(DPO):
    """WPO: DPO weighted by how likely the policy finds both responses (Zhou et al., 2024).

        loss = −W · log σ(m),  W = exp(ℓ̄_θ(y_w)) · exp(ℓ̄_θ(y_l)), detached,  m = β(Δ_w − Δ_l)

    Both coefficients are W · β(1 − a), a = σ(m). This is the paper's plain weight. TRL's `use_weighting` is its
    "sampled alignment": each token's log-probability against log Σ_v π(v)², so that a typical sample has W near 1.
    """

    name: ClassVar[str] = "wpo"
    title: ClassVar[str] = "WPO"
    formula: ClassVar[str] = "−exp(ℓ̄(y_w) + ℓ̄(y_l))·log σ(m), weight detached"
    paper: ClassVar[str] = "Zhou et al., 2024"
    arxiv: ClassVar[str] = "2406.11827"

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −W · log σ(m) of each pair."""
        weight = (pairs.chosen_mean + pairs.rejected_mean).detach().exp()
        return -weight * F.logsigmoid(self.margin(pairs))
