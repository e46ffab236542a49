"""Log-probabilities of pairs (x, y_w, y_l): what a loss on pairs reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["AlteredLogps", "CutLogps", "PairLogps", "SpanLogps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanLogps:
    """The tokens of y_l from the first to the last in which it differs from y_w; tensors of shape `[pairs]`."""

    logp: Tensor
    """log π_θ of these tokens, nats, summed; a part of `PairLogps.rejected`."""
    reference: Tensor
    """log π_ref of these tokens, nats, summed; no gradient."""
    tokens: Tensor
    """How many there are, at least 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CutLogps:
    """The first min(L_w, L_l) tokens of both responses; tensors of shape `[pairs]`, nats, summed over these tokens."""

    chosen: Tensor
    """log π_θ(y_w | x) of them; a part of `PairLogps.chosen`."""
    rejected: Tensor
    """log π_θ(y_l | x) of them; a part of `PairLogps.rejected`."""
    reference_chosen: Tensor
    """log π_ref(y_w | x) of them; no gradient."""
    reference_rejected: Tensor
    """log π_ref(y_l | x) of them; no gradient."""

    @property
    def chosen_shift(self) -> Tensor:
        """Δ_w of these tokens, nats, `[pairs]`."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_shift(self) -> Tensor:
        """Δ_l of these tokens, nats, `[pairs]`."""
        return self.rejected - self.reference_rejected


@dataclass(frozen=True, kw_only=True, eq=False)
class AlteredLogps:
    """The same responses under an altered image; tensors of shape `[pairs]`, NaN where a loss does not ask for them."""

    chosen: Tensor
    """log π_θ(y_w | x̃), nats, summed over response tokens."""
    rejected: Tensor
    """log π_θ(y_l | x̃), nats, summed over response tokens."""
    reference_chosen: Tensor
    """log π_ref(y_w | x̃), nats, summed over response tokens; no gradient."""

    @property
    def chosen_shift(self) -> Tensor:
        """Δ̃_w, nats, `[pairs]`."""
        return self.chosen - self.reference_chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogps:
    """Log-probabilities of a batch of pairs (x, y_w, y_l); tensors of shape `[pairs]`.

    Raises:
        ValueError: Shapes differ (they would broadcast silently), or a log-probability is not float32 or float64
            (bfloat16 rounds a sum of −72 nats to the nearest half nat).
    """

    chosen: Tensor
    """log π_θ(y_w | x), nats, summed over response tokens."""
    rejected: Tensor
    """log π_θ(y_l | x), nats, summed over response tokens."""
    reference_chosen: Tensor
    """log π_ref(y_w | x), nats, summed over response tokens; no gradient; 0 where a method needs no reference."""
    reference_rejected: Tensor
    """log π_ref(y_l | x), nats, summed over response tokens; no gradient; 0 where a method needs no reference."""
    chosen_tokens: Tensor
    """Response tokens of y_w, at least 1."""
    rejected_tokens: Tensor
    """Response tokens of y_l, at least 1."""
    score_gap: Tensor | None = None
    """s_w − s_l, by what the data say of the responses, for methods that need it."""
    span: SpanLogps | None = None
    """Where y_l differs from y_w, for methods that need it."""
    cut: CutLogps | None = None
    """Both responses cut to the length of the shorter one, for methods that need it."""
    altered: AlteredLogps | None = None
    """The responses under an altered image, for methods that need it."""

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

    def map(self, change: Callable[[Tensor], Tensor]) -> PairLogps:
        """Return the pairs with `change` applied to every tensor."""

        def mapped(part: SpanLogps | CutLogps | AlteredLogps) -> dict[str, Tensor]:
            return {f.name: change(getattr(part, f.name)) for f in fields(part)}

        own = {f.name: change(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        span = None if self.span is None else SpanLogps(**mapped(self.span))
        cut = None if self.cut is None else CutLogps(**mapped(self.cut))
        altered = None if self.altered is None else AlteredLogps(**mapped(self.altered))
        return replace(self, **own, span=span, cut=cut, altered=altered)
