"""What GRPO and PPO are made of: advantages from rewards, the clipped surrogate, the KL divergence to a reference.

Values per token are `[responses, tokens]`; where a response has no token, a mask says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cwdpo.losses.checks import check_share

__all__ = ["clipped_surrogate", "generalised_advantages", "group_advantages", "kl_to_reference"]

_LEAST_SPREAD = 1e-4
"""Added to the standard deviation of a group, as in TRL."""


def group_advantages(rewards: Tensor) -> Tensor:
    """Hold each reward against those of the other samples of its prompt (GRPO; Shao et al., 2024, §4.1.2).

        A_i = (R_i − mean(R)) / (std(R) + 1e-4)

    The standard deviation divides by samples − 1, as TRL's does. Equal rewards give advantages of 0.

    Args:
        rewards: `Float[prompts, samples]`, two or more samples a prompt.

    Returns:
        `Float[prompts, samples]`.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + _LEAST_SPREAD)


def kl_to_reference(logps: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(π_θ ‖ π_ref) at tokens drawn from π_θ, in nats (GRPO's Eq. 4; the estimator is never negative).

        k3 = 1/r + log r − 1,  r = π_θ / π_ref

    Args:
        logps: log π_θ.
        reference: log π_ref.
    """
    shift = reference - logps
    return shift.exp() - shift - 1


def clipped_surrogate(
    logps: Tensor,
    old: Tensor,
    advantages: Tensor,
    *,
    clip: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """Return PPO's loss per token (Schulman et al., 2017, Eq. 7), and whether it is cut off there.

        loss = −min(ρA, clip(ρ, 1 − ε, 1 + ε)·A),  ρ = π_θ / π_old

    It is cut off, and has no gradient, where ρ has gone further than ε in the direction that A asks for.

    Args:
        logps: log π_θ.
        old: log π_old: of the policy that the responses were sampled from, without gradient.
        advantages: A.
        clip: ε.

    Raises:
        ValueError: If `clip` is outside [0, 1].
    """
    check_share("clip", clip)
    ratio = (logps - old).exp()
    free, held = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(free, held), (held < free).detach()


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gae_lambda: float = 0.95,
) -> Tensor:
    """Return generalised advantages (Schulman et al., 2015, arXiv 1506.02438) without discount.

        A_t = Σ_k λ^k δ_{t+k},  δ_t = R_t + V_{t+1} − V_t

    After the last token nothing is to come: V is 0 there.

    Args:
        rewards: R, of each token.
        values: V of the state that each token is drawn in.
        mask: True at tokens; they stand first.
        gae_lambda: λ.

    Returns:
        Advantages, 0 at padding; added to `values` they are what the value function learns.
    """
    check_share("gae_lambda", gae_lambda)
    values = values * mask
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    surprises = (rewards + following - values) * mask
    advantages = torch.zeros_like(surprises)
    later = surprises.new_zeros(len(surprises))
    for place in reversed(range(surprises.shape[1])):
        later = surprises[:, place] + gae_lambda * later
        advantages[:, place] = later
    return advantages * mask
