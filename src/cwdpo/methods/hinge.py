"""The hinge loss on DPO's margin."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["Hinge"]


class Hinge(DPO):
    """The hinge loss on DPO's margin: SLiC (Zhao et al., 2023) as RSO normalises it (Liu et al., 2023, 2309.06657).

        loss = max(0, 1 − m),  m = β(Δ_w − Δ_l)

    Both coefficients are β until m = 1, then 0.
    """

    name: ClassVar[str] = "hinge"
    title: ClassVar[str] = "Hinge"
    formula: ClassVar[str] = "max(0, 1 − m)"
    paper: ClassVar[str] = "Zhao et al., 2023 (SLiC-HF)"
    arxiv: ClassVar[str] = "2305.10425"

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return max(0, 1 − m) of each pair."""
        return torch.relu(1 - self.margin(pairs))
