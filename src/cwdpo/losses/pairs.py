"""What goes into a pair loss and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PairLogps", "PairLoss", "SpanLogps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanLogps:
    """The part of y_l in which it differs from y_w: three tensors of one shape, `[pairs]`."""

    logp: Tensor
    """log π_θ of those tokens, nats, summed; a part of `PairLogps.rejected`."""
    reference: Tensor
    """log π_ref of those tokens, nats, summed; carries no gradient."""
    tokens: Tensor
    """How many they are, at least 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogps:
    """What a pair loss needs to know of a batch of pairs (x, y_w, y_l): tensors of one shape, `[pairs]`.

    Raises:
        ValueError: If the shapes differ (they would broadcast in silence), or a log-probability is not float32 or
            float64 (in bfloat16 a sum of −72 nats is rounded to the nearest half nat).
    """

    chosen: Tensor
    """log π_θ(y_w | x), nats, summed over response tokens."""
    rejected: Tensor
    """log π_θ(y_l | x), nats, summed over response tokens."""
    reference_chosen: Tensor
    """log π_ref(y_w | x), nats, summed over response tokens; carries no gradient."""
    reference_rejected: Tensor
    """log π_ref(y_l | x), nats, summed over response tokens; carries no gradient."""
    chosen_tokens: Tensor
    """Response tokens of y_w, at least 1."""
    rejected_tokens: Tensor
    """Response tokens of y_l, at least 1."""
    rejected_span: SpanLogps | None = None
    """Where y_l differs from y_w, for losses that treat it apart."""

    def __post_init__(self) -> None:
        for name in ("rejected", "reference_chosen", "reference_rejected", "chosen_tokens", "rejected_tokens"):
            shape = getattr(self, name).shape
            if shape != self.chosen.shape:
                raise ValueError(f"{name}: shape {tuple(shape)}, must be that of chosen, {tuple(self.chosen.shape)}")
        for name in ("chosen", "rejected", "reference_chosen", "reference_rejected"):
            dtype = getattr(self, name).dtype
            if dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name}: dtype {dtype}, must be torch.float32 or torch.float64")

    @property
    def chosen_shift(self) -> Tensor:
        """Δ_w = log π_θ(y_w | x) − log π_ref(y_w | x), nats, `[pairs]`."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_shift(self) -> Tensor:
        """Δ_l = log π_θ(y_l | x) − log π_ref(y_l | x), nats, `[pairs]`."""
        return self.rejected - self.reference_rejected

    @property
    def chosen_mean(self) -> Tensor:
        """ℓ̄_θ(y_w | x), nats per token, `[pairs]`."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """ℓ̄_θ(y_l | x), nats per token, `[pairs]`."""
        return self.rejected / self.rejected_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLoss:
    """A loss per pair and what drives it; every field is `[pairs]`, all but `loss` are detached."""

    loss: Tensor
    """The value to average and differentiate."""
    margin: Tensor
    """The logit m inside −log σ(m); σ(m) is the paper's a (or a′). For IPO the difference that is squared."""
    weight: Tensor
    """The factor w on Δ_l inside the margin, relative to Δ_w: w_c for CW-DPO, 1 for DPO, L_w / L_l for token means."""
    winner_coefficient: Tensor
    """−∂loss / ∂log π_θ(y_w): how hard the step pulls the winner up."""
    loser_coefficient: Tensor
    """∂loss / ∂log π_θ(y_l): how hard the step pushes the loser down; negative where it pulls it up."""
