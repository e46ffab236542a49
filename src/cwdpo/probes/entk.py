"""The empirical neural tangent kernel K(o, u) = J_o J_uᵀ between two samples: its norm, exact or projected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cwdpo.models.modes import inference
from cwdpo.probes.influence import trainable
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.scorer import Scorer

__all__ = ["exact_kernel", "jacobian", "projected_kernel_norm"]

_LARGEST = 2**28
"""Elements of a Jacobian that are formed at most: 1 GiB in float32."""


class _Logits(nn.Module):
    """The response logits of a batch as a function of the weights."""

    def __init__(self, model: nn.Module, scorer: Scorer, batch: Batch) -> None:
        super().__init__()
        self.model, self.scorer, self.batch = model, scorer, batch

    def forward(self) -> Tensor:
        return self.scorer(self.model, self.batch).logits.flatten()


def jacobian(model: Any, scorer: Scorer, batch: Batch, *, chunk: int = 64) -> Tensor:
    """Return J = ∂z/∂θ of a batch's response logits with respect to the trainable weights, by `torch.func`.

    Args:
        model: The policy.
        scorer: How responses are scored.
        batch: The sample.
        chunk: Rows computed at once.

    Returns:
        `Float[positions · vocabulary, weights]`.

    Raises:
        ValueError: It would be larger than 2**28 elements; use `projected_kernel_norm`.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    logits = _Logits(model, scorer, batch)
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    count = sum(p.numel() for p in weights.values())
    with inference(model):
        outputs = logits().numel()
        if outputs * count > _LARGEST:
            raise ValueError(f"the Jacobian has {outputs} × {count} elements; take random projections instead")

        def function(values: Mapping[str, Tensor]) -> Tensor:
            return torch.func.functional_call(logits, dict(values), ())

        with torch.enable_grad():
            parts: Any = torch.func.jacrev(function, chunk_size=chunk)(weights)
    return torch.cat([parts[f"model.{name}"].flatten(1).detach() for name in names], 1)


def exact_kernel(model: Any, scorer: Scorer, observed: Batch, update: Batch) -> Tensor:
    """Return K(o, u) = J_o J_uᵀ, `Float[logits of o, logits of u]`. For small models and short responses."""
    one = jacobian(model, scorer, observed)
    return one @ (one if update is observed else jacobian(model, scorer, update)).T


def projected_kernel_norm(
    model: Any, scorer: Scorer, observed: Batch, update: Batch, *, projections: int = 16, seed: int = 0
) -> tuple[float, float]:
    """Estimate ‖K(o, u)‖²_F from random projections of the logits: E (aᵀKb)² for independent signs a and b.

    With S projections a side this takes 2S backward passes and gives S² products.

    Args:
        model: The policy.
        scorer: How responses are scored.
        observed: The observed sample.
        update: The update sample.
        projections: S.
        seed: Of the signs.

    Returns:
        The estimate and its standard error (NaN of one projection).
    """
    generator = torch.Generator().manual_seed(seed)
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
