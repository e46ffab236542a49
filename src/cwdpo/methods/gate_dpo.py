"""Gate-DPO."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["GateDPO"]


class GateDPO(DPO):
    """Gate-DPO: the loser's gradient closes where the policy finds it unlikely (Mouiche and Bahi, 2026).

        loss = −log σ(β(Δ_w − z)),  z = g·Δ_l + (1 − g)·sg(Δ_l),  g = σ(α(p − τ)) detached,  p = exp ℓ̄_θ(y_l)

    The value is DPO's, the loser's coefficient g times DPO's. `cw_dpo` weighs the loser's reward itself, by ℓ̄. p is the
    sequence's; the authors' other choice is the 10 % quantile of the tokens' probabilities. Their repository
    (imouiche/gradient-gate-dpo-vs-the-field) gives the form of g, not α and τ: ours are half open at ℓ̄ = −3, `cw_dpo`'s
    floor, and as good as closed at p = 0 (g = .007).
    """

    name: ClassVar[str] = "gate_dpo"
    title: ClassVar[str] = "Gate-DPO"
    formula: ClassVar[str] = "−log σ(m), the loser's gradient times σ(α(exp ℓ̄(y_l) − τ))"
    paper: ClassVar[str] = "Mouiche and Bahi, 2026"
    arxiv: ClassVar[str] = "2605.02626"

    gate_slope: float = Field(default=100.0, gt=0)
    """α: how sharply the gate opens."""
    gate_threshold: float = Field(default=0.05, ge=0, le=1)
    """τ: probability per token (geometric mean) at which it is half open."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ(m) of each pair, its gradient gated."""
        shift, probability = pairs.rejected_shift, pairs.rejected_mean.detach().exp()
        gate = torch.sigmoid(self.gate_slope * (probability - self.gate_threshold))
        gated = shift.detach() + gate * (shift - shift.detach())
        return -F.logsigmoid(self.beta * (pairs.chosen_shift - gated))
