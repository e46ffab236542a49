"""V-DPO: the policy guided away from what it says without its image."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["VDPO"]


class VDPO(DPO):
    """V-DPO: the policy is guided away from what it says without seeing the image (Xie et al., 2024).

        log p̂ = γ log π_θ(y | x) − (γ − 1) log π_θ(y | x without its image)
        loss = −log σ(m),  m = β[(log p̂_w − log π_ref,w) − (log p̂_l − log π_ref,l)]

    Both coefficients (under the prompt's own image) are γβ(1 − a), a = σ(m). Only the policy looks at the grey image:
    the reference is that under the prompt's own. The released script sets γ = 0, which leaves nothing of the policy
    under its image to learn from.
    """

    name: ClassVar[str] = "v_dpo"
    title: ClassVar[str] = "V-DPO"
    formula: ClassVar[str] = "−log σ(β(p̂_w − p̂_l)), p̂ = γ·log π − (γ−1)·log π̃ − log π_ref"
    paper: ClassVar[str] = "Xie et al., 2024"
    arxiv: ClassVar[str] = "2411.02712"
    note: ClassVar[str] = "both responses again under a grey image"

    guidance: float = Field(default=1.5, gt=0)
    """γ: above 1 the policy is guided away from what it says without the image; 1 is DPO."""
    detach_null: bool = True
    """No gradient through the pass without the image."""

    @property
    def needs(self) -> Needs:
        """Both responses under a grey image, by the policy only."""
        return Needs(image="blank", altered=("chosen", "rejected"), altered_reference=False)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(m) of each pair."""
        assert pairs.altered is not None
        null_chosen, null_rejected = pairs.altered.chosen, pairs.altered.rejected
        if self.detach_null:
            null_chosen, null_rejected = null_chosen.detach(), null_rejected.detach()
        chosen = self.guidance * pairs.chosen - (self.guidance - 1) * null_chosen
        rejected = self.guidance * pairs.rejected - (self.guidance - 1) * null_rejected
        return -F.logsigmoid(self.beta * ((chosen - pairs.reference_chosen) - (rejected - pairs.reference_rejected)))
