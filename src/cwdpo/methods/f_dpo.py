"""DPO under another divergence to the reference."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["FDPO"]


class FDPO(DPO):
    """f-DPO: the policy is held to the reference by an f-divergence other than the reverse KL (Wang et al., 2023).

        loss = −log σ(β(f′(u_w) − f′(u_l))),  u = π_θ/π_ref = e^Δ

    | `divergence` | f′(u) |
    |---|---|
    | `alpha` | (1 − u^−α)/α, with α = 1 the forward KL |
    | `js` | log 2u/(1 + u) |

    f′ is 0 at u = 1; the paper leaves such constants out, which cancel. α is 1 − TRL's `f_alpha_divergence_coef`; α → 0
    is DPO. Exponents are cut at 80, near the end of float32.
    """

    name: ClassVar[str] = "f_dpo"
    title: ClassVar[str] = "f-DPO"
    formula: ClassVar[str] = "−log σ(β(f′(u_w) − f′(u_l))), u = e^Δ"
    paper: ClassVar[str] = "Wang et al., 2023"
    arxiv: ClassVar[str] = "2309.16240"

    divergence: Literal["alpha", "js"] = "alpha"
    """α-divergence or Jensen-Shannon; `dpo` is the reverse KL."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """α of the α-divergence; 1 is the forward KL."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −log σ of each pair's gap in f′."""
        return -F.logsigmoid(self.beta * (self._score(pairs.chosen_shift) - self._score(pairs.rejected_shift)))

    def _score(self, shift: Tensor) -> Tensor:
        """Return f′(e^Δ)."""
        if self.divergence == "js":
            return math.log(2) + F.logsigmoid(shift)
        return -torch.expm1((-self.alpha * shift).clamp(max=80)) / self.alpha
