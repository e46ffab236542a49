"""GRPO."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from cwdpo.methods.on_policy import OnPolicyMethod, TokenLogps, clipped_surrogate, kl_to_reference

__all__ = ["GRPO", "group_advantages"]


class GRPO(OnPolicyMethod):
    """Group-relative policy optimisation (Shao et al., 2024, Eq. 3): loss and gradient are those of TRL 1.16.

        loss = −min(ρA, clip(ρ, 1 − ε, 1 + ε)·A) + kl · (1/r + log r − 1)

    ρ = π/π_old, r = π/π_ref; A holds a response's reward against those of its prompt's other samples.
    """

    name: ClassVar[str] = "grpo"
    title: ClassVar[str] = "GRPO"
    formula: ClassVar[str] = "−min(ρA, clip(ρ)A) + kl·(1/r + log r − 1)"
    paper: ClassVar[str] = "Shao et al., 2024"
    arxiv: ClassVar[str] = "2402.03300"
    note: ClassVar[str] = (
        "per token; ρ = π/π_old, r = π/π_ref, A: reward against the prompt's others; needs no rejected ones"
    )
    per_response: ClassVar[bool] = True

    samples: int = Field(default=4, ge=2)
    """Responses sampled for every prompt, at temperature 1; with fewer than 2 there is nothing to compare with."""

    def loss(self, tokens: TokenLogps) -> Tensor:
        """Return the clipped surrogate of each token, with the divergence."""
        surrogate = clipped_surrogate(tokens, clip=self.clip)
        if tokens.reference is None:
            return surrogate
        return surrogate + self.kl * kl_to_reference(tokens.logps, tokens.reference)


def group_advantages(rewards: Tensor) -> Tensor:
    """Hold each reward against those of the other samples of its prompt (Shao et al., 2024, §4.1.2).

        A_i = (R_i − mean(R)) / (std(R) + 1e-4)

    The standard deviation divides by samples − 1, and 1e-4 is added to it, as in TRL. Equal rewards give advantages of
    0.

    Args:
        rewards: `Float[..., samples]`, two or more samples a prompt.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + 1e-4)
