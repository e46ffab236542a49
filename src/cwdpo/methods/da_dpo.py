"""DA-DPO."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["DADPO"]


class DADPO(DPO):
    """DA-DPO: pairs that another model tells apart easily have a larger β (Qiu et al., 2026).

        loss = −log σ(a(1 + |s_w − s_l|)·m),  m = β(Δ_w − Δ_l)

    A larger β holds a pair closer to the reference: easy pairs are not overlearned. s is what the data say of a
    response (`score`), in the paper by CLIP and a vision-language model before training.
    """

    name: ClassVar[str] = "da_dpo"
    title: ClassVar[str] = "DA-DPO"
    formula: ClassVar[str] = "−log σ(a(1 + |s_w − s_l|)·m)"
    paper: ClassVar[str] = "Qiu et al., 2026"
    arxiv: ClassVar[str] = "2601.00623"
    note: ClassVar[str] = "reads the score of every response"

    score_scale: float = Field(default=1.0, gt=0)
    """a: scale of all pairs' margins (the code's `db_alpha`)."""

    @property
    def needs(self) -> Needs:
        """The responses' scores."""
        return Needs(scores=True)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ of each pair's weighted margin."""
        assert pairs.score_gap is not None
        return -F.logsigmoid(self.score_scale * (1 + pairs.score_gap.abs()) * self.margin(pairs))
