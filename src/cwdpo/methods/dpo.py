"""DPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Method
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["DPO"]


class DPO(Method):
    """Direct preference optimisation (Rafailov et al., 2023; Eq. 10).

        loss = −log σ(m),  m = β(Δ_w − Δ_l)

    Both coefficients are β(1 − a), a = σ(m).
    """

    name: ClassVar[str] = "dpo"
    title: ClassVar[str] = "DPO"
    formula: ClassVar[str] = "−log σ(m)"
    paper: ClassVar[str] = "Rafailov et al., 2023"
    arxiv: ClassVar[str] = "2305.18290"

    beta: float = Field(default=0.1, gt=0)
    """β: how strongly the policy is held to the reference. The paper never states it."""

    def margin(self, pairs: PairLogps) -> Tensor:
        """Return m of each pair."""
        return self.beta * (pairs.chosen_shift - pairs.rejected_shift)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(m) of each pair."""
        return -F.logsigmoid(self.margin(pairs))
