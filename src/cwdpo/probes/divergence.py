"""How far two distributions over the vocabulary are apart, and how spread one is, from log-probabilities.

Every function works along the last axis and position by position: cut the positions into chunks as memory asks.
Half precision is widened to float32. A log-probability of −inf is a class of probability zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["entropy", "jensen_shannon", "total_variation"]


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation distance ½‖p − q‖₁.

    Args:
        log_p: Normalised log-probabilities in nats, `[..., classes]`.
        log_q: The same shape.

    Returns:
        Between 0 (equal) and 1 (disjoint), `[...]`.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(log_p, log_q)
    return 0.5 * (_wide(log_p).exp() - _wide(log_q).exp()).abs().sum(-1)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence (not its square root, the distance): ½ KL(p ‖ m) + ½ KL(q ‖ m), m = ½(p + q).

    Computed as Σ ½m[(1 + u) log(1 + u) + (1 − u) log(1 − u)] with u = (p − q)/(p + q) = tanh(½(log p − log q)): no term
    is a difference of logarithms, so it is exactly zero for equal inputs and keeps its digits for close ones.

    Args:
        log_p: Normalised log-probabilities in nats, `[..., classes]`.
        log_q: The same shape.

    Returns:
        Bits, between 0 (equal) and 1 (disjoint), `[...]`.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(log_p, log_q)
    log_p, log_q = _wide(log_p), _wide(log_q)
    # A class that neither side has gives −inf − (−inf) and must add nothing; a NaN that came in stays in `middle`.
    contrast = torch.tanh(0.5 * (log_p - log_q)).nan_to_num(0.0)
    middle = 0.5 * (log_p.exp() + log_q.exp())
    terms = torch.special.xlog1py(1 + contrast, contrast) + torch.special.xlog1py(1 - contrast, -contrast)
    return 0.5 * (middle * terms).sum(-1) / math.log(2)


def entropy(log_p: Tensor) -> Tensor:
    """Shannon entropy −Σ p log p.

    Args:
        log_p: Normalised log-probabilities in nats, `[..., classes]`.

    Returns:
        Nats, between 0 (one class certain) and log(classes) (uniform), `[...]`.
    """
    log_p = _wide(log_p)
    # 0 · (−inf) is NaN; 0 times the lowest finite number is 0.
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def _wide(log_p: Tensor) -> Tensor:
    return log_p if log_p.dtype == torch.float64 else log_p.float()


def _check_shapes(log_p: Tensor, log_q: Tensor) -> None:
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_q: shape {tuple(log_q.shape)}, must be that of log_p, {tuple(log_p.shape)}")
