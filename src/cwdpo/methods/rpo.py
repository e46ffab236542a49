"""DPO plus the winner's likelihood."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["RPO"]


class RPO(DPO):
    """DPO plus the winner's negative log-likelihood per token (Pang et al., 2024).

        loss = −log σ(m) − α · ℓ̄_θ(y_w | x),  m = β(Δ_w − Δ_l)

    The coefficients are β(1 − a) + α / L_w and β(1 − a), a = σ(m).
    """

    name: ClassVar[str] = "rpo"
    title: ClassVar[str] = "DPO+NLL"
    formula: ClassVar[str] = "−log σ(m) − α·ℓ̄(y_w)"
    paper: ClassVar[str] = "Pang et al., 2024"
    arxiv: ClassVar[str] = "2404.19733"

    sft_weight: float = Field(default=1.0, ge=0)
    """α: weight of the chosen response's NLL per token; 0 is DPO."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(m) − α · ℓ̄(y_w) of each pair."""
        return super().loss(pairs) + self.sft_weight * -pairs.chosen_mean
