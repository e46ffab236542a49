"""mDPO: the winner must be likelier under its image than under a crop of it."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["MDPO"]


class MDPO(DPO):
    """mDPO: DPO, the winner preferred under its own image to a cropped one, and an anchor (Wang et al., 2024).

        loss = −log σ(m) − log σ(β(Δ_w − Δ̃_w)) − log σ(βΔ_w),  m = β(Δ_w − Δ_l)

    The winner's coefficient under its own image adds the three pulls, the loser's is DPO's.
    """

    name: ClassVar[str] = "mdpo"
    title: ClassVar[str] = "mDPO"
    formula: ClassVar[str] = "−log σ(m) − log σ(β(Δ_w − Δ̃_w)) − log σ(β·Δ_w)"
    paper: ClassVar[str] = "Wang et al., 2024"
    arxiv: ClassVar[str] = "2406.11839"
    note: ClassVar[str] = "the winner again under a crop of 1 to 20 % of the image"

    @property
    def needs(self) -> Needs:
        """The winner under a cropped image."""
        return Needs(image="crop")

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the three terms of each pair, added up."""
        assert pairs.altered is not None
        ranked = super().loss(pairs)
        seen = self.beta * (pairs.chosen_shift - pairs.altered.chosen_shift)
        return ranked - F.logsigmoid(seen) - F.logsigmoid(self.beta * pairs.chosen_shift)
