"""SimPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Method, Needs
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["SimPO"]


class SimPO(Method):
    """SimPO: no reference, means per token, a margin to reach (Meng et al., 2024).

        loss = −log σ(m),  m = β(ℓ̄_θ(y_w) − ℓ̄_θ(y_l)) − γ

    The coefficients are β(1 − a) over L_w and over L_l, a = σ(m).
    """

    name: ClassVar[str] = "simpo"
    title: ClassVar[str] = "SimPO"
    formula: ClassVar[str] = "−log σ(β(ℓ̄(y_w) − ℓ̄(y_l)) − γ)"
    paper: ClassVar[str] = "Meng et al., 2024"
    arxiv: ClassVar[str] = "2405.14734"
    note: ClassVar[str] = "no reference"

    beta: float = Field(default=2.0, gt=0)
    """β on means per token, larger than DPO's by about the length of a response (the paper: 2 to 2.5)."""
    target_margin: float = Field(default=1.0, ge=0)
    """γ: lead of the winner's reward β·ℓ̄ that counts as even. (TRL's `simpo_gamma`; the paper tunes γ/β, about 0.5.)"""

    @property
    def needs(self) -> Needs:
        """No reference."""
        return Needs(reference=False)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(m) of each pair."""
        return -F.logsigmoid(self.beta * (pairs.chosen_mean - pairs.rejected_mean) - self.target_margin)
