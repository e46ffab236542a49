"""The norm of the empirical neural tangent kernel K(o, u) = J_o J_uᵀ between two samples, from random projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cwdpo.models.modes import inference
from cwdpo.probes.step_influence import trainable
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.scorer import Scorer

__all__ = ["projected_kernel_norm"]


def projected_kernel_norm(
    model: Any, scorer: Scorer, observed: Batch, update: Batch, *, projections: int = 16
) -> tuple[float, float]:
    """Estimate ‖K(o, u)‖²_F from random projections of the logits: E (aᵀKb)² for independent signs a and b.

    With S projections a side this takes 2S backward passes and gives S² products.

    Args:
        model: The policy.
        scorer: How responses are scored.
        observed: The observed sample.
        update: The update sample.
        projections: S.

    Returns:
        The estimate and its standard error (NaN of one projection).
    """
    generator = torch.Generator().manual_seed(0)
    one = _projected(model, scorer, observed, projections, generator)
    other = _projected(model, scorer, update, projections, generator)
    products = (one @ other.T).square()
    sides = [products.mean(axis).std() / projections**0.5 for axis in (0, 1)]
    return float(products.mean()), float(torch.stack(sides).norm())


def _projected(model: Any, scorer: Scorer, batch: Batch, projections: int, generator: torch.Generator) -> Tensor:
    """Return Jᵀa for several vectors of signs a, `[projections, weights]`, on the CPU in float64."""
    parameters = trainable(model)
    rows: list[Tensor] = []
    with inference(model), torch.enable_grad():
        logits = scorer(model, batch).logits
        for i in range(projections):
            signs = torch.randint(0, 2, logits.shape, generator=generator).to(logits) * 2 - 1
            keep = i < projections - 1
            grads = torch.autograd.grad(logits, parameters, signs, retain_graph=keep, materialize_grads=True)
            rows.append(torch.cat([g.detach().flatten().cpu().double() for g in grads]))
    return torch.stack(rows)
