"""CHiP."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["CHiP"]


class CHiP(DPO):
    """CHiP's visual and response levels: one margin over answers and over images (Fu et al., 2025).

        loss = −log σ(m + β(Δ_w − Δ̃_w)),  m = β(Δ_w − Δ_l)

    The winner's coefficient is 2β(1 − a): it is compared with the loser and with itself under another image. Two of the
    paper's levels are left out: segments (weights of tokens that the data name), and tokens (a KL over the vocabulary
    at each place, for which the reference's whole distributions would have to be kept). The other image is grey; in the
    paper it is the same image under diffusion noise.
    """

    name: ClassVar[str] = "chip"
    title: ClassVar[str] = "CHiP"
    formula: ClassVar[str] = "−log σ(m + β(Δ_w − Δ̃_w))"
    paper: ClassVar[str] = "Fu et al., 2025"
    arxiv: ClassVar[str] = "2501.16629"
    note: ClassVar[str] = "the winner again under a grey image; without the token-level KL"

    @property
    def needs(self) -> Needs:
        """The winner under a grey image."""
        return Needs(image="blank")

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ of each pair's margin over answers and images."""
        assert pairs.altered is not None
        return -F.logsigmoid(self.margin(pairs) + self.beta * (pairs.chosen_shift - pairs.altered.chosen_shift))
