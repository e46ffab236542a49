"""CPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Method, Needs
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["CPO"]


class CPO(Method):
    """CPO: DPO with a uniform reference, and the winner's likelihood (Xu et al., 2024).

        loss = −log σ(β(log π_θ(y_w) − log π_θ(y_l))) − α ℓ̄(y_w)

    The paper writes the likelihood as a sum; it is per token here, as in TRL.
    """

    name: ClassVar[str] = "cpo"
    title: ClassVar[str] = "CPO"
    formula: ClassVar[str] = "−log σ(β(log π(y_w) − log π(y_l))) − α·ℓ̄(y_w)"
    paper: ClassVar[str] = "Xu et al., 2024"
    arxiv: ClassVar[str] = "2401.08417"
    note: ClassVar[str] = "no reference"

    beta: float = Field(default=0.1, gt=0)
    """β on sums over the response."""
    sft_weight: float = Field(default=1.0, ge=0)
    """α: weight of the chosen response's NLL per token."""

    @property
    def needs(self) -> Needs:
        """No reference."""
        return Needs(reference=False)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(β(log π_w − log π_l)) − α ℓ̄_w of each pair."""
        ranked = F.logsigmoid(self.beta * (pairs.chosen - pairs.rejected))
        return -ranked - self.sft_weight * pairs.chosen_mean
