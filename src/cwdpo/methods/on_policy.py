"""What GRPO and PPO share: settings, advantages from rewards, the clipped surrogate, the KL divergence to a reference.

Values per token are `[responses, tokens]`, 0 at padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Method, Needs

__all__ = ["OnPolicyMethod", "TokenLogps", "clipped_surrogate", "is_clipped", "kl_to_reference"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenLogps:
    """Sampled responses token by token; tensors of shape `[responses, tokens]`."""

    logps: Tensor
    """log π_θ."""
    old: Tensor
    """log π_old, of the policy that the responses were sampled from; no gradient."""
    advantages: Tensor
    """A."""
    reference: Tensor | None = None
    """log π_ref; None without a reference."""


class OnPolicyMethod(Method):
    """A method whose responses the policy samples as it trains, and whose loss has one value a token."""

    on_policy: ClassVar[bool] = True
    per_response: ClassVar[bool]
    """Whether the loss is averaged over the tokens of a response and then over responses, or over all tokens."""

    samples: int = Field(default=4, ge=1)
    """Responses sampled for every prompt, at temperature 1."""
    reward: Literal["auto", "exact", "cider"] = "auto"
    """What they are rewarded for: CIDEr-D against the references (1 is what the tables call 100), document frequencies
    from all training prompts; `exact`: 1 for a right caption of `scenes`; `auto`: `exact` on `scenes`, else `cider`."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest sampled response, in tokens."""
    rollout_updates: int = Field(default=1, ge=1)
    """Updates whose responses are sampled together, before the first of them; from the second on the policy is no
    longer the one that sampled, which is what `clip` is for."""
    rollout_batch_size: int = Field(default=16, ge=1)
    """Prompts whose responses are sampled at once; changes memory, speed and what is drawn. Several processes share
    these batches out among them."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """ε: how far π/π_old may go from 1 before a token stops counting."""
    kl: float = Field(default=0.04, ge=0)
    """Weight of the KL divergence to the reference: in the loss of `grpo`, in the rewards of `ppo`; 0 has none."""

    @property
    def needs(self) -> Needs:
        """A reference, unless `kl` is 0."""
        return Needs(reference=self.kl > 0)


def kl_to_reference(logps: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(π_θ ‖ π_ref) at tokens drawn from π_θ, in nats (GRPO's Eq. 4; the estimator is never negative).

    k3 = 1/r + log r − 1,  r = π_θ / π_ref
    """
    shift = reference - logps
    return shift.exp() - shift - 1


def clipped_surrogate(tokens: TokenLogps, *, clip: float) -> Tensor:
    """Return PPO's loss per token (Schulman et al., 2017, Eq. 7).

    loss = −min(ρA, clip(ρ, 1 − ε, 1 + ε)·A),  ρ = π_θ / π_old
    """
    return -torch.minimum(*_surrogates(tokens, clip))


def is_clipped(tokens: TokenLogps, *, clip: float) -> Tensor:
    """Return whether a token has no gradient: ρ has gone further than ε in the direction that A asks for."""
    free, clipped = _surrogates(tokens, clip)
    return (clipped < free).detach()


def _surrogates(tokens: TokenLogps, clip: float) -> tuple[Tensor, Tensor]:
    ratio = (tokens.logps - tokens.old).exp()
    return ratio * tokens.advantages, ratio.clamp(1 - clip, 1 + clip) * tokens.advantages
