"""IPO on means per token."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Method
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["IPO"]


class IPO(Method):
    """Identity preference optimisation (Azar et al., 2023), on means per token.

        loss = (h − 1/(2β))²,  h = Δ_w / L_w − Δ_l / L_l

    The paper writes sums, under which the target 1/(2β) would mean less the longer the responses are; means are its
    authors' own reading, and TRL's. The coefficients are 2(1/(2β) − h) over L_w and over L_l.
    """

    name: ClassVar[str] = "ipo"
    title: ClassVar[str] = "IPO"
    formula: ClassVar[str] = "(Δ_w/L_w − Δ_l/L_l − 1/(2β))²"
    paper: ClassVar[str] = "Azar et al., 2023"
    arxiv: ClassVar[str] = "2310.12036"
    note: ClassVar[str] = "means per token"

    beta: float = Field(default=0.1, gt=0)
    """β (the paper's τ): h is drawn to 1/(2β) nats per token."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return (h − 1/(2β))² of each pair."""
        gap = pairs.chosen_shift / pairs.chosen_tokens - pairs.rejected_shift / pairs.rejected_tokens
        return (1 / (2 * self.beta) - gap).square()
