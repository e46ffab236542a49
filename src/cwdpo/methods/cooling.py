"""The cooling weight (Eq. 6): how much a rejected response counts, by how likely the policy finds it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from cwdpo.section import Section

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cooling", "cooling_weight"]


class Cooling(Section):
    """Where rejected responses count as easy."""

    floor: float = -3.0
    """ℓ_floor of Eq. 6: log-probability per token at which a rejected response counts half. Read by `cw_dpo`, and by
    probes, metrics, `curriculum: frontier` and `refresh.below` whatever the objective."""
    tau: float = Field(default=1.0, gt=0)
    """τ of Eq. 6: width of the transition, in nats per token; small is a switch, large is a constant."""


def cooling_weight(logp_mean: Tensor, *, floor: float = -3.0, tau: float = 1.0, w_min: float = 0.0) -> Tensor:
    """Weigh the loser by how likely the policy finds it (Eq. 6).

        w_c = w_min + (1 − w_min) · σ((ℓ̄_θ(y_l | x) − ℓ_floor) / τ)

    With w_min = 0 it is 0.5 at the floor and, because ℓ̄ ≤ 0, never above σ(−ℓ_floor / τ): 0.953 for the defaults.
    Gradients flow through it.

    Args:
        logp_mean: ℓ̄_θ(y_l | x), nats per token, any shape.
        floor: ℓ_floor, nats per token; well below it a negative counts as easy.
        tau: Temperature τ, nats per token.
        w_min: Lower bound of the weight (ours: the paper has 0); 1 gives DPO.

    Returns:
        Weights between `w_min` and 1, of the shape of `logp_mean`.

    Raises:
        ValueError: `floor` is not finite, `tau` is not finite and positive, or `w_min` is outside [0, 1].
    """
    if not math.isfinite(floor):
        raise ValueError(f"floor = {floor!r}: must be finite")
    if not 0 < tau < math.inf:
        raise ValueError(f"tau = {tau!r}: must be finite and above 0")
    if not 0 <= w_min <= 1:
        raise ValueError(f"w_min = {w_min!r}: must be between 0 and 1")
    import torch

    return w_min + (1 - w_min) * torch.sigmoid((logp_mean - floor) / tau)
