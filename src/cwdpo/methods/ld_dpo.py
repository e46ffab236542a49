"""LD-DPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["LDDPO"]


class LDDPO(DPO):
    """Length-desensitised DPO: what a response has beyond the other's length counts less (Liu et al., 2024).

        loss = −log σ(β(Δ′_w − Δ′_l)),  Δ′ = Δ over the first min(L_w, L_l) tokens + α·Δ over the others

    So for the policy and for the reference, as in TRL (`ld_alpha`).
    """

    name: ClassVar[str] = "ld_dpo"
    title: ClassVar[str] = "LD-DPO"
    formula: ClassVar[str] = "−log σ(β(Δ′_w − Δ′_l)), Δ′: tokens beyond the shorter length times α"
    paper: ClassVar[str] = "Liu et al., 2024"
    arxiv: ClassVar[str] = "2409.06411"

    excess_weight: float = Field(default=0.5, ge=0, le=1)
    """α: weight of the tokens beyond the shorter response's length; 1 is DPO. (The paper: .3 to .6 by model.)"""

    @property
    def needs(self) -> Needs:
        """The responses cut to the length of the shorter one."""
        return Needs(cut=True)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ of each pair's margin."""
        assert pairs.cut is not None
        whole = pairs.chosen_shift - pairs.rejected_shift
        cut = pairs.cut.chosen_shift - pairs.cut.rejected_shift
        return -F.logsigmoid(self.beta * (cut + self.excess_weight * (whole - cut)))
