"""SFT: the likelihood of the chosen responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from cwdpo.methods.base import Method, Needs

__all__ = ["SFT", "ResponseLogps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ResponseLogps:
    """What a loss of Stage 1 reads of each response; tensors of shape `[responses]`."""

    logp: Tensor
    """log π_θ(y | x), nats, summed over response tokens."""
    tokens: Tensor
    """Response tokens, at least 1."""
    uniform: Tensor
    """Mean log π_θ over the vocabulary, nats, summed over response tokens."""
    entropy: Tensor
    """Entropy of the predictive distribution, nats, mean over response tokens."""

    def __getitem__(self, rows: list[int]) -> ResponseLogps:
        """Return some of the responses."""
        return ResponseLogps(
            logp=self.logp[rows], tokens=self.tokens[rows], uniform=self.uniform[rows], entropy=self.entropy[rows]
        )


class SFT(Method):
    """Maximum likelihood: the mean NLL of the chosen responses."""

    name: ClassVar[str] = "sft"
    title: ClassVar[str] = "SFT"
    formula: ClassVar[str] = "NLL(y⁺)"
    paper: ClassVar[str] = "maximum likelihood"
    stage: ClassVar[Literal["stage1", "stage2"]] = "stage1"

    nll_reduction: Literal["mean", "sum"] = "mean"
    """Negative log-likelihood of a response: mean over its tokens, or sum."""

    @property
    def needs(self) -> Needs:
        """No reference."""
        return Needs(reference=False)

    @property
    def loss_metric(self) -> str:
        """Name under which the mean of `loss` is logged."""
        return "nll/chosen"

    def nll(self, logp: Tensor, tokens: Tensor) -> Tensor:
        """Return a negative log-likelihood, in nats per token or in nats as `nll_reduction` says."""
        return -logp / tokens if self.nll_reduction == "mean" else -logp

    def loss(self, responses: ResponseLogps) -> Tensor:
        """Return the NLL of each chosen response."""
        return self.nll(responses.logp, responses.tokens)
