"""SFT-C: the likelihood of the chosen responses, with a regularizer on the rejected or the chosen ones (Eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from cwdpo.methods.sft import SFT, ResponseLogps

T = TypeVar("T", float, Tensor)

__all__ = ["REGULARIZERS", "SFTC", "Regularizer"]


@dataclass(frozen=True)
class Regularizer:
    """A value of `regularizer`.

    Attributes:
        formula: In one line.
        settings: Fields of `SFTC` that it reads.
        paper: Where it is from.
        arxiv: Number on arXiv, empty without one.
    """

    formula: str
    settings: tuple[str, ...]
    paper: str = "Zhang et al., CVPR 2026"
    arxiv: str = "2510.11978"


_HINGED = ("weight", "nll_floor", "hinge_scope", "nll_reduction")

REGULARIZERS = {
    "nll_floor": Regularizer("NLL(y⁺) + λ·ReLU(C − NLL(y⁻))", _HINGED),
    "nll_ceiling": Regularizer("NLL(y⁺) + λ·ReLU(NLL(y⁻) − C)", _HINGED),
    "entropy": Regularizer("NLL(y⁺) − λ·H(π(·|y⁻))", ("weight", "nll_reduction")),
    "label_smoothing": Regularizer(
        "(1 − ε)·NLL(y⁺) + ε·(mean −log π over the vocabulary)",
        ("epsilon", "nll_reduction"),
        "Szegedy et al., 2015",
        "1512.00567",
    ),
    "hard_constraint": Regularizer("NLL(y⁺), or C − NLL(y⁻) alone while it is above 0", ("nll_floor", "nll_reduction")),
}


class SFTC(SFT):
    """SFT-C: mean NLL(y⁺) + λ·ReLU(C − mean NLL(y⁻)) (Eq. 3 and 4), or another regularizer.

    λ times the mean of `penalty` over the rejected responses is added to the mean of `loss` over the chosen ones. The
    ReLU of Eq. 4 stands outside of that mean, so whether it is on is known only after the last micro-batch: `gated`.
    """

    name: ClassVar[str] = "sft_c"
    title: ClassVar[str] = "SFT-C"
    formula: ClassVar[str] = "NLL(y⁺) and a regularizer on the negatives or the positives"
    paper: ClassVar[str] = "Zhang et al., CVPR 2026"
    arxiv: ClassVar[str] = "2510.11978"

    regularizer: Literal["nll_floor", "nll_ceiling", "entropy", "label_smoothing", "hard_constraint"] = "nll_floor"
    """`nll_floor` is Eq. 4. `nll_ceiling` is what the paper's prose says. `entropy` rewards entropy on the negatives.
    `label_smoothing` smooths the positives. `hard_constraint` follows the constraint alone while it is violated."""
    weight: float = Field(default=0.1, ge=0)
    """λ of Eq. 4 (for `entropy`: weight of the entropy, in nats)."""
    nll_floor: float = Field(default=4.0, gt=0)
    """C of Eq. 4, in nats per token (or per response with `nll_reduction: sum`)."""
    hinge_scope: Literal["global_batch", "example"] = "global_batch"
    """Where the ReLU of Eq. 4 stands: on the mean over the global batch, as printed, or on each negative."""
    epsilon: float = Field(default=0.1, gt=0, lt=1)
    """Share of the uniform distribution in `label_smoothing`."""

    @property
    def loss_metric(self) -> str:
        """Name under which the mean of `loss` is logged."""
        return "nll/smoothed" if self.regularizer == "label_smoothing" else "nll/chosen"

    @property
    def penalised(self) -> bool:
        """Whether rejected responses play a part."""
        return self.regularizer != "label_smoothing"

    @property
    def gated(self) -> bool:
        """Whether the hinge stands on the mean over the global batch."""
        hinged = self.regularizer in ("nll_floor", "nll_ceiling")
        return self.regularizer == "hard_constraint" or (hinged and self.hinge_scope == "global_batch")

    @property
    def replaces_loss(self) -> bool:
        """Whether the penalty stands alone while it is on."""
        return self.regularizer == "hard_constraint"

    def violation(self, nll: T) -> T:
        """Return how far an NLL of rejected responses is on the wrong side of C, negative on the right one."""
        return nll - self.nll_floor if self.regularizer == "nll_ceiling" else self.nll_floor - nll

    def loss(self, responses: ResponseLogps) -> Tensor:
        """Return the NLL of each chosen response, smoothed with `label_smoothing`."""
        nll = super().loss(responses)
        if self.regularizer != "label_smoothing":
            return nll
        return (1 - self.epsilon) * nll + self.epsilon * self.nll(responses.uniform, responses.tokens)

    def penalty(self, responses: ResponseLogps) -> Tensor:
        """Return the penalty of each rejected response, without λ."""
        if self.regularizer == "entropy":
            return -responses.entropy
        violation = self.violation(self.nll(responses.logp, responses.tokens))
        return violation if self.gated else torch.relu(violation)
