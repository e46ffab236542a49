"""SPPO with hard labels."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["SPPO"]


class SPPO(DPO):
    """SPPO: each response's log-ratio is drawn to a target of its own (Wu et al., 2024, Eq. 4.7, P = 1 and 0).

        loss = (Δ_w − 1/(2β))² + (Δ_l + 1/(2β))²

    The paper estimates how probable it is that y beats the policy from a preference model; on pairs it is 1 and 0. β is
    1/η of the paper, 10⁻³ there; 0.1 aims at 5 nats. The coefficients are 2(1/(2β) − Δ_w) and
    2(Δ_l + 1/(2β)): beyond their targets both pull back.
    """

    name: ClassVar[str] = "sppo"
    title: ClassVar[str] = "SPPO"
    formula: ClassVar[str] = "(Δ_w − 1/(2β))² + (Δ_l + 1/(2β))²"
    paper: ClassVar[str] = "Wu et al., 2024"
    arxiv: ClassVar[str] = "2405.00675"
    note: ClassVar[str] = "hard labels"

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return both squares of each pair, added up."""
        target = 1 / (2 * self.beta)
        return (pairs.chosen_shift - target).square() + (pairs.rejected_shift + target).square()
