"""ORPO."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Method, Needs
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["ORPO"]


class ORPO(Method):
    """ORPO: the winner's likelihood and an odds ratio, without a reference (Hong et al., 2024).

        loss = −ℓ̄(y_w) − λ log σ(log odds(y_w) − log odds(y_l)),  odds(y) = p/(1 − p),  p = exp ℓ̄(y)

    The NLL is that of the response; TRL takes the prompt's tokens into it. ℓ̄ is held at −1e-7 and below, where the odds
    are finite in float32.
    """

    name: ClassVar[str] = "orpo"
    title: ClassVar[str] = "ORPO"
    formula: ClassVar[str] = "−ℓ̄(y_w) − λ·log σ(log odds(y_w) − log odds(y_l))"
    paper: ClassVar[str] = "Hong et al., 2024"
    arxiv: ClassVar[str] = "2403.07691"
    note: ClassVar[str] = "no reference; odds of exp ℓ̄"

    odds_weight: float = Field(default=0.1, ge=0)
    """λ: weight of the odds ratio (TRL's `beta`); 0 is the likelihood alone."""

    @property
    def needs(self) -> Needs:
        """No reference."""
        return Needs(reference=False)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the NLL and the odds-ratio term of each pair, added up."""
        odds = [mean - _log_one_minus_exp(mean) for mean in (pairs.chosen_mean, pairs.rejected_mean)]
        return -pairs.chosen_mean - self.odds_weight * F.logsigmoid(odds[0] - odds[1])


def _log_one_minus_exp(x: Tensor) -> Tensor:
    """Return log(1 − eˣ) for x < 0, without cancellation on either side of −log 2."""
    x = x.clamp(max=-1e-7)
    return torch.where(x < -math.log(2), torch.log1p(-x.exp()), torch.log(-torch.expm1(x)))
