"""The preference losses of OPA-DPO; answers, corrections and SFT on both come before (`negatives.correction`)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["OPADPO"]


class OPADPO(DPO):
    """The preference losses of OPA-DPO, for one winner (Yang et al., 2025).

        loss = −log σ(m) − μ log σ(β(Δ_w − Δ̃_w)) − α log σ(βΔ_w),  m = β(Δ_w − Δ_l)

    Δ̃_w is under the image with a part masked. The method has two winners a prompt, the gold answer and the model's own
    in its smallest revision: each makes pairs of its own. Sums run over whole responses and the anchor is positive, as
    the paper writes it; the released code pairs tokens by position and negates two anchors.
    """

    name: ClassVar[str] = "opa_dpo"
    title: ClassVar[str] = "OPA-DPO"
    formula: ClassVar[str] = "−log σ(m) − μ·log σ(β(Δ_w − Δ̃_w)) − α·log σ(β·Δ_w)"
    paper: ClassVar[str] = "Yang et al., 2025"
    arxiv: ClassVar[str] = "2501.09695"
    note: ClassVar[str] = (
        "every chosen response of a prompt, again under the image with 30 % masked; see negatives.correction"
    )

    image_weight: float = Field(default=0.2, ge=0)
    """μ: weight of preferring the winner under its whole image."""
    anchor_weight: float = Field(default=1.0, ge=0)
    """α: weight of keeping the winner above the reference."""

    @property
    def needs(self) -> Needs:
        """Every chosen response, also under a masked image."""
        return Needs(image="mask", every_chosen=True)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the three terms of each pair, added up."""
        assert pairs.altered is not None
        ranked = super().loss(pairs)
        seen = self.beta * (pairs.chosen_shift - pairs.altered.chosen_shift)
        anchor = self.beta * pairs.chosen_shift
        return ranked - self.image_weight * F.logsigmoid(seen) - self.anchor_weight * F.logsigmoid(anchor)
