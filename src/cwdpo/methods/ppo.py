"""PPO with a linear value function."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cwdpo.methods.on_policy import OnPolicyMethod, TokenLogps, clipped_surrogate

__all__ = ["PPO", "generalised_advantages"]


class PPO(OnPolicyMethod):
    """Proximal policy optimisation (Schulman et al., 2017, Eq. 7); rewards hold the divergence to the reference.

    loss = −min(ρA, clip(ρ, 1 − ε, 1 + ε)·A),  ρ = π/π_old
    """

    name: ClassVar[str] = "ppo"
    title: ClassVar[str] = "PPO"
    formula: ClassVar[str] = "−min(ρA, clip(ρ)A)"
    paper: ClassVar[str] = "Schulman et al., 2017"
    arxiv: ClassVar[str] = "1707.06347"
    note: ClassVar[str] = (
        "per token; A: GAE of reward − kl·log r with a linear value function; needs no rejected responses"
    )
    per_response: ClassVar[bool] = False

    rollout_updates: int = Field(default=4, ge=1)
    """Updates whose responses are sampled together, before the first of them; from the second on the policy is no
    longer the one that sampled, which is what `clip` is for."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of the advantages: 1 trusts the rewards alone, 0 the value function."""
    value_learning_rate: float = Field(default=0.5, gt=0, le=1)
    """Step of the value function, a linear one: 1 sets the value of a state that is seen alone to its return."""

    def loss(self, tokens: TokenLogps) -> Tensor:
        """Return the clipped surrogate of each token."""
        return clipped_surrogate(tokens, clip=self.clip)


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, *, gae_lambda: float = 0.95) -> Tensor:
    """Return generalised advantages (Schulman et al., 2015, arXiv 1506.02438) without discount.

        A_t = Σ_k λ^k δ_{t+k},  δ_t = R_t + V_{t+1} − V_t

    After the last token V is 0.

    Args:
        rewards: R, of each token.
        values: V of the state that each token is drawn in.
        mask: True at tokens; they stand first.
        gae_lambda: λ.

    Returns:
        Advantages, 0 at padding; added to `values` they are what the value function learns.
    """
    values = values * mask
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    surprises = (rewards + following - values) * mask
    advantages = torch.zeros_like(surprises)
    later = surprises.new_zeros(len(surprises))
    for place in reversed(range(surprises.shape[1])):
        later = surprises[:, place] + gae_lambda * later
        advantages[:, place] = later
    return advantages * mask
