"""The winner's likelihood alone, a term of sums."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cwdpo.methods.base import Method, Needs
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["NLL"]


class NLL(Method):
    """The winner's negative log-likelihood per token: −ℓ̄_θ(y_w | x)."""

    name: ClassVar[str] = "nll"
    title: ClassVar[str] = "NLL"
    formula: ClassVar[str] = "−ℓ̄(y_w)"
    paper: ClassVar[str] = "maximum likelihood"
    note: ClassVar[str] = "meant as a term of a sum; alone it learns nothing from rejected responses"

    @property
    def needs(self) -> Needs:
        """No reference."""
        return Needs(reference=False)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return −ℓ̄(y_w) of each pair."""
        return -pairs.chosen_mean
