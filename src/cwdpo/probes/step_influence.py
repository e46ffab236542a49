"""How one update on one sample moves another: measured, predicted, and taken apart (paper, §2.2 and G).

With z the logits of a sample's response positions, one step θ' = θ − η∇L(u) changes ℓ̄(o) by

    Δℓ̄(o) ≈ −η ⟨A_o, K(o, u) G_u⟩,  A_o = ∇_z ℓ̄(o) = (y − π)/L,  K = J_o J_uᵀ,  G_u = ∇_z L(u)

up to O(η²) (Proposition 1). The right-hand side is computed exactly as −η ∇_θ ℓ̄(o) · ∇_θ L(u), without ever forming K.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cwdpo.devices import to_float64
from cwdpo.errors import DataError
from cwdpo.methods.cooling import Cooling
from cwdpo.models.modes import in_precision, inference
from cwdpo.objectives import objective_of
from cwdpo.probes.reading import kind_of
from cwdpo.recipe import Stage1Section, Stage2Section
from cwdpo.scoring.batch import Batch, ResponseLogits, Scores
from cwdpo.scoring.scorer import Scorer

__all__ = [
    "SMALLEST_STEP",
    "Influence",
    "SampleLoss",
    "belief_geometry",
    "measure_influence",
    "projected_kernel_norm",
    "trainable",
    "update_gradient",
]

logger = logging.getLogger(__name__)

SMALLEST_STEP = 1e-4
"""Steps below this are lost in the rounding of float32 weights."""


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What one step on an update sample does to one observed response. Squares are Frobenius norms squared.

    Attributes:
        update: Id of the update sample.
        observed: Id of the observed prompt.
        kind: Role or difficulty of the observed response.
        objective: The loss of the step.
        eta: η, the size of the step (plain gradient descent).
        tokens: Response tokens observed.
        loss: L(u) before the step.
        logp_mean: ℓ̄(o) before the step, nats per token.
        measured: Δℓ̄(o), nats per token.
        predicted: The same to first order (Eq. 1).
        delta_log_pi_sq: ‖Δ log π‖²_F, over all response positions and the whole vocabulary.
        a_belief_sq: ‖I − 1πᵀ‖²_F = V‖π‖² + V − 2, summed over positions: grows as beliefs sharpen.
        a_paper_sq: ‖(y − π)/L‖²_F: the paper's own A_t = ∇_z ℓ̄, which shrinks as the response is learned.
        g_update_sq: ‖∇_z L(u)‖²_F, coefficients of the loss included.
        g_observed_sq: Σ_t ‖π_t − y_t‖² of the observed response, coefficient 1.
        winner_coefficient: −∂L/∂log π(y_w) of the update sample.
        loser_coefficient: ∂L/∂log π(y_l), summed over its losers (as the winner's is over its pairs).
        lb_k: delta_log_pi_sq / (η² · a_belief_sq · g_update_sq), the paper's proxy of the kernel's norm.
    """

    update: str
    observed: str
    kind: str
    objective: str
    eta: float
    tokens: int
    loss: float
    logp_mean: float
    measured: float
    predicted: float
    delta_log_pi_sq: float
    a_belief_sq: float
    a_paper_sq: float
    g_update_sq: float
    g_observed_sq: float
    winner_coefficient: float
    loser_coefficient: float
    lb_k: float

    def to_json(self) -> dict[str, Any]:
        """Return the row form."""
        return asdict(self)


class SampleLoss:
    """The loss of a stage on one prompt, as on a batch of one.

    Args:
        section: The stage's settings.

    Raises:
        DataError: The loss reads more than a prompt's responses and their summed reference log-probabilities.
    """

    def __init__(self, section: Stage1Section | Stage2Section) -> None:
        self.objective = section.objective
        cooling = section if isinstance(section, Cooling) else None
        self._loss = objective_of(section.method, cooling)
        self.needs_reference = self._loss.needs_reference
        whole = section.method.needs.whole_batch
        if self._loss.twin is not None or self._loss.tokenwise_reference or whole or section.method.on_policy:
            raise DataError(
                f"influence is not known for {self.objective}, whose loss reads more than the responses of a prompt"
            )

    def __call__(self, batch: Batch, scores: Scores, reference: Tensor | None) -> Tensor:
        """Compute the loss.

        Args:
            batch: One encoded prompt with its responses.
            scores: The policy's scores of them.
            reference: log π_ref(y | x) of every response, nats, `[responses]`, without gradient.

        Returns:
            A scalar.

        Raises:
            DataError: The prompt lacks the responses that the loss needs.
        """
        totals, gate = self._loss.counts(batch), None
        if not all(totals.get(name, 1) for name in ("pairs", "chosen")):
            needed = "a chosen response" if "chosen" in totals else "a chosen and a rejected response"
            raise DataError(f"{batch.groups[0].origin}: {self.objective} needs {needed}")
        reference = reference if reference is None else reference.to(scores.logps)
        if self._loss.gated:
            sums = self._loss(batch, scores, reference, totals, True).sums
            gate = self._loss.gate({name: float(value) for name, value in sums.items()}, totals)
        return self._loss(batch, scores, reference, totals, gate).loss


def trainable(model: Any) -> list[Tensor]:
    """Return the parameters that a step moves."""
    return [p for p in model.parameters() if p.requires_grad]


def belief_geometry(log_pi: Tensor) -> Tensor:
    """‖I − 1πᵀ‖²_F = V‖π‖² + V − 2 at every position.

    Args:
        log_pi: Normalised log-probabilities, `[..., vocabulary]`.

    Returns:
        Between V − 1 (uniform) and 2(V − 1) (one class certain), `[...]`.
    """
    size = log_pi.shape[-1]
    return size * log_pi.exp().square().sum(-1) + size - 2


def _log_pi(output: ResponseLogits) -> Tensor:
    """Return normalised log-probabilities at the response positions, at least float32."""
    logits = output.logits if output.logits.dtype == torch.float64 else output.logits.float()
    return logits.log_softmax(-1)


def _scores(output: ResponseLogits, log_pi: Tensor) -> Scores:
    """Return scores in the type of `log_pi`; `scores_from_logits` is for float32."""

    def laid_out(values: Tensor) -> Tensor:
        return values.new_zeros(output.shape).index_put((output.rows, output.columns), values)

    pi = log_pi.exp()
    return Scores(
        logps=laid_out(log_pi.gather(-1, output.targets[:, None]).squeeze(-1)),
        mask=laid_out(torch.ones_like(output.targets, dtype=torch.bool)),
        entropy=laid_out(-(pi * log_pi).sum(-1)),
        uniform=laid_out(log_pi.mean(-1)),
        top1=laid_out(pi.amax(-1)),
        correct=laid_out(log_pi.argmax(-1) == output.targets),
    )


@dataclass(frozen=True)
class UpdateGradient:
    """The gradient of one sample's loss.

    Attributes:
        loss: L(u).
        weights: ∇_θ L, one tensor a parameter.
        logits: G_u = ∇_z L, `[positions, vocabulary]`.
        winner: −∂L/∂log π(y_w).
        loser: ∂L/∂log π(y_l), summed over losers.
    """

    loss: float
    weights: list[Tensor]
    logits: Tensor
    winner: float
    loser: float


def update_gradient(
    model: Any, scorer: Scorer, batch: Batch, loss: SampleLoss, reference: Tensor | None = None
) -> UpdateGradient:
    """Differentiate a sample's loss with respect to weights, logits and log-probabilities; leaves `.grad` alone."""
    parameters = trainable(model)
    with inference(model), torch.enable_grad():
        output = scorer(model, batch)
        scores = _scores(output, _log_pi(output))
        value = loss(batch, scores, reference)
        wanted = [output.logits, scores.logps, *parameters]
        by_logits, by_logps, *weights = torch.autograd.grad(value, wanted, materialize_grads=True)
    pulls = -by_logps[:, 0].cpu().double()  # a loss reads sums over tokens: the same at every token
    chosen, rejected = batch.rows("chosen"), batch.rows("rejected")
    return UpdateGradient(
        float(value.detach()),
        weights,
        by_logits.detach(),
        float(pulls[chosen].sum()),
        float(-pulls[rejected].sum()),
    )


@dataclass(frozen=True)
class _Observed:
    """An observed response before the step."""

    prompt: str
    kind: str
    gradient: Sequence[Tensor]
    log_pi: Tensor
    targets: Tensor


def measure_influence(
    model: Any,
    scorer: Scorer,
    updates: Sequence[Batch],
    observed: Sequence[Batch],
    loss: SampleLoss,
    *,
    references: Sequence[Tensor] | None = None,
    eta: float = 1e-4,
) -> list[Influence]:
    """Take one gradient step on each update sample and look at every observed response; the weights are put back.

    Dropout is off. A model in float64 computes in float64 throughout, which small steps need. Weights, `.grad`, mode
    and random state are bitwise what they were. The cost is one backward pass for each update sample and each observed
    response, and a forward pass over all observed ones for each update sample.

    Args:
        model: The policy.
        scorer: How responses are scored.
        updates: Update samples, one prompt a batch.
        observed: Observed prompts; every response of each is looked at.
        loss: The loss of the step.
        references: log π_ref of each update sample's responses, `[responses]` each, where the loss needs them.
        eta: η, the size of the step.

    Returns:
        One row for each update sample and observed response.
    """
    precise = all(p.dtype == torch.float64 for p in model.parameters() if p.is_floating_point())
    if eta < SMALLEST_STEP and not precise:
        logger.warning(
            "eta = %g: below %g what is measured is mostly rounding of the weights; `cwdpo influence` takes such steps "
            "in float64",
            eta,
            SMALLEST_STEP,
        )
    with in_precision(model, torch.float64) if precise else nullcontext():
        return _measured(model, scorer, updates, observed, loss, references, eta)


def _measured(
    model: Any,
    scorer: Scorer,
    updates: Sequence[Batch],
    observed: Sequence[Batch],
    loss: SampleLoss,
    references: Sequence[Tensor] | None,
    eta: float,
) -> list[Influence]:
    reference_of = references if references is not None else [None] * len(updates)
    steps = [update_gradient(model, scorer, u, loss, r) for u, r in zip(updates, reference_of, strict=True)]
    responses = [response for batch in observed for response in _observe(model, scorer, batch)]
    parameters = trainable(model)
    weights = [p.detach().clone() for p in parameters]
    rows: list[Influence] = []
    for u, step in zip(updates, steps, strict=True):
        try:
            with torch.no_grad():
                for parameter, gradient in zip(parameters, step.weights, strict=True):
                    parameter.add_(gradient, alpha=-eta)
            after = [log_pi for batch in observed for log_pi in _log_pi_of_responses(model, scorer, batch)]
        finally:
            with torch.no_grad():
                for parameter, before in zip(parameters, weights, strict=True):
                    parameter.copy_(before)
        rows += [_row(u, step, o, log_pi, loss, eta) for o, log_pi in zip(responses, after, strict=True)]
    return rows


def _observe(model: Any, scorer: Scorer, batch: Batch) -> list[_Observed]:
    """Return every response of a batch with the gradient of its ℓ̄."""
    parameters = trainable(model)
    with inference(model), torch.enable_grad():
        output = scorer(model, batch)
        log_pi = _log_pi(output)
        means = _scores(output, log_pi).logp_mean
        observed: list[_Observed] = []
        for i, response in enumerate(batch.responses):
            last, mine = i == len(batch.responses) - 1, output.rows == i
            grads = torch.autograd.grad(means[i], parameters, retain_graph=not last, materialize_grads=True)
            place = batch.groups[batch.owner[i]].id, kind_of(response)
            observed.append(_Observed(*place, grads, log_pi[mine].detach(), output.targets[mine]))
    return observed


def _log_pi_of_responses(model: Any, scorer: Scorer, batch: Batch) -> list[Tensor]:
    with inference(model):
        output = scorer(model, batch)
        log_pi = _log_pi(output)
        return [log_pi[output.rows == i] for i in range(output.shape[0])]


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((to_float64(a) * to_float64(b)).sum()) for a, b in zip(one, other, strict=True))


def _row(u: Batch, step: UpdateGradient, o: _Observed, log_pi: Tensor, loss: SampleLoss, eta: float) -> Influence:
    before, after = to_float64(o.log_pi), to_float64(log_pi)
    targets = o.targets[:, None].to(before.device)
    logps, moved = before.gather(-1, targets), after.gather(-1, targets)
    residual = before.exp().scatter_add(-1, targets, torch.full_like(logps, -1.0))
    tokens = len(o.targets)
    belief = float(belief_geometry(before).sum())
    pushed = float(to_float64(step.logits).square().sum())
    change = float((after - before).square().sum())
    scale = eta**2 * belief * pushed
    return Influence(
        update=u.groups[0].id,
        observed=o.prompt,
        kind=o.kind,
        objective=loss.objective,
        eta=eta,
        tokens=tokens,
        loss=step.loss,
        logp_mean=float(logps.mean()),
        measured=float((moved - logps).mean()),
        predicted=-eta * _dot(step.weights, o.gradient),
        delta_log_pi_sq=change,
        a_belief_sq=belief,
        a_paper_sq=float(residual.square().sum()) / tokens**2,
        g_update_sq=pushed,
        g_observed_sq=float(residual.square().sum()),
        winner_coefficient=step.winner,
        loser_coefficient=step.loser,
        lb_k=change / scale if scale else float("nan"),
    )


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
