"""DPO on means per token."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Method
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["LNDPO"]


class LNDPO(Method):
    """Length-normalised DPO (Tülu 3: Lambert et al., 2024; TRL's `sigmoid_norm`).

        loss = −log σ(β(Δ_w/L_w − Δ_l/L_l))

    The coefficients are β(1 − a) over L_w and over L_l: SimPO with a reference, without its target.
    """

    name: ClassVar[str] = "ln_dpo"
    title: ClassVar[str] = "LN-DPO"
    formula: ClassVar[str] = "−log σ(β(Δ_w/L_w − Δ_l/L_l))"
    paper: ClassVar[str] = "Lambert et al., 2024"
    arxiv: ClassVar[str] = "2411.15124"
    note: ClassVar[str] = "means per token"

    beta: float = Field(default=5.0, gt=0)
    """β on means per token, larger than DPO's by about the length of a response (Tülu 3: 5)."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ of each pair's gap in means."""
        gap = pairs.chosen_shift / pairs.chosen_tokens - pairs.rejected_shift / pairs.rejected_tokens
        return -F.logsigmoid(self.beta * gap)
