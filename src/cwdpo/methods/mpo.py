"""MPO."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from cwdpo.methods.bco import BCO
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["MPO"]


class MPO(BCO):
    """InternVL's mixed preference optimisation: DPO, BCO and likelihood (Wang et al., 2024).

        loss = .8·DPO + .2·BCO + 1·NLL,  NLL = −ℓ̄_θ(y_w)

    The same as the sum `[{dpo: {}, weight: 0.8}, {bco: {}, weight: 0.2}, {nll: {}, weight: 1}]`.
    """

    name: ClassVar[str] = "mpo"
    title: ClassVar[str] = "MPO"
    formula: ClassVar[str] = "w_p·DPO + w_q·BCO − w_g·ℓ̄(y_w)"
    paper: ClassVar[str] = "Wang et al., 2024"
    arxiv: ClassVar[str] = "2411.10442"

    preference_weight: float = Field(default=0.8, ge=0)
    """w_p: weight of DPO."""
    quality_weight: float = Field(default=0.2, ge=0)
    """w_q: weight of BCO."""
    generation_weight: float = Field(default=1.0, ge=0)
    """w_g: weight of the chosen response's NLL per token."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the three terms of each pair, added up."""
        compared = self.preference_weight * DPO.loss(self, pairs) + self.quality_weight * super().loss(pairs)
        return compared - self.generation_weight * pairs.chosen_mean
