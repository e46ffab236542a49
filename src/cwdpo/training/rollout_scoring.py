"""What the loss of sampled responses is made of: log-probabilities to compare with, PPO's advantages and values."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cwdpo.errors import ModelError, NonFiniteError
from cwdpo.methods.on_policy import OnPolicyMethod
from cwdpo.methods.ppo import PPO, generalised_advantages
from cwdpo.models.modes import inference
from cwdpo.objectives.sampled import SampledResponse
from cwdpo.processes import Processes, processes
from cwdpo.scoring.batch import Batch, EncodedGroup, ResponseLogits
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.reference import Reference
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.data_parallel import SharingScorer

__all__ = ["Critic", "Weigher", "scores_and_features"]

Update = list[Batch]
"""The micro-batches of an update."""


@dataclass(frozen=True)
class _Seen:
    """What was computed of a micro-batch.

    Attributes:
        old: `Float[responses, tokens]`, log-probabilities of the policy as it is now; None where they are not needed.
        reference: `Float[responses, tokens]`, those of the reference; None without one.
        advantages: `Float[responses, tokens]`, PPO's.
        errors: `Float[responses]`, mean squared errors of the value function.
        features: `Float[tokens, features]`, what the value function learns from.
        returns: `Float[tokens]`, what it learns.
    """

    old: Tensor | None = None
    reference: Tensor | None = None
    advantages: Tensor | None = None
    errors: Tensor | None = None
    features: Tensor | None = None
    returns: Tensor | None = None


class Weigher:
    """Gives sampled responses what their loss compares with, in all processes in step.

    Args:
        method: What is trained.
        scorer: How responses are scored; one that is shared where several processes train.
        reference: Where reference log-probabilities come from; None where `kl` is 0.

    Attributes:
        critic: The value function of `ppo`.
    """

    def __init__(self, method: OnPolicyMethod, scorer: Scorer, reference: Reference | None) -> None:
        self._method, self.scorer, self._reference = method, scorer, reference
        self.critic = Critic(method.value_learning_rate) if isinstance(method, PPO) else None

    def __call__(self, model: Any, updates: list[Update]) -> list[Update]:
        """Return the micro-batches with all fields of their responses.

        Raises:
            NonFiniteError: A log-probability is NaN or infinite, in any of the processes.
        """
        look = self._compared if self.critic is None else self._valued
        with inference(model):
            seen = [[look(model, batch) for batch in batches] for batches in updates]
        # Only now is it looked at: until here the others may have needed what this process computes.
        filled = processes().each(lambda: _each_batch(_filled, updates, seen))
        if self.critic is None:
            return filled
        for found in seen:
            self.critic.learn(_joined([v.features for v in found]), _joined([v.returns for v in found]))
        return _whitened(processes(), filled)

    @property
    def stand_in(self) -> EncodedGroup:
        """What a process scores that has no rows, while the others score theirs."""
        assert isinstance(self.scorer, SharingScorer)
        return self.scorer.stand_in

    def _compared(self, model: Any, batch: Batch) -> _Seen:
        """Score under the reference, and under the policy where another one will be trained on the responses."""
        old = reference = None
        run = batch if batch.groups else Batch((self.stand_in,))
        if self._method.rollout_updates > 1:
            old = scores_from_logits(self.scorer(model, run)).logps
        if self._reference is not None:
            reference = self._reference.per_token(model, run)
        return _Seen(old, reference)

    def _valued(self, model: Any, batch: Batch) -> _Seen:
        """Return generalised advantages, and what the value function is to learn from them."""
        method, critic, run = self._method, self.critic, batch if batch.groups else Batch((self.stand_in,))
        assert critic is not None and isinstance(method, PPO)
        logps, mask, features = scores_and_features(model, self.scorer, run)
        reference = self._reference.per_token(model, run) if self._reference is not None else None
        if run is not batch:
            return _Seen(features=features[:0, 0], returns=logps[:0, 0])
        values = critic.values(features) * mask
        rewards = torch.zeros_like(logps) if reference is None else -method.kl * (logps - reference) * mask
        sizes = [len(r.ids) for r in batch.responses]
        earned = torch.tensor([r.reward for r in _own(batch)])
        rewards[range(len(sizes)), [n - 1 for n in sizes]] += earned.to(rewards)
        advantages = generalised_advantages(rewards, values, mask, gae_lambda=method.gae_lambda)
        errors = advantages.square().sum(-1) / mask.sum(-1)
        return _Seen(logps, reference, advantages, errors, features[mask], (advantages + values)[mask])


def _each_batch(
    do: Callable[[Batch, Any], Batch], updates: Sequence[Update], others: Sequence[Sequence[Any]]
) -> list[Update]:
    return [list(map(do, batches, found)) for batches, found in zip(updates, others, strict=True)]


def _filled(batch: Batch, seen: _Seen) -> Batch:
    if not batch.groups:
        return batch
    return _changed(
        batch,
        old=_finite(batch, seen.old),
        reference=_finite(batch, seen.reference),
        advantages=_finite(batch, seen.advantages),
        value_error=None if seen.errors is None else seen.errors.tolist(),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None])


def _own(batch: Batch) -> list[SampledResponse]:
    return [r for r in batch.responses if isinstance(r, SampledResponse)]


def _finite(batch: Batch, values: Tensor | None) -> list[tuple[float, ...]] | None:
    """Return values by token as rows of their responses' lengths.

    Raises:
        NonFiniteError: One is NaN or infinite.
    """
    if values is None:
        return None
    rows = [tuple(row[: len(r.ids)]) for row, r in zip(values.tolist(), batch.responses, strict=True)]
    if not bool(values.isfinite().all()):
        names = ", ".join(sorted({g.origin for g in batch.groups}))
        raise NonFiniteError(f"sampled responses: a log-probability is not finite. Rows: {names}")
    return rows


def _changed(batch: Batch, **columns: Sequence[Any] | None) -> Batch:
    """Return the batch with other fields of its responses, given in their order; None leaves a field as it is."""
    given = {name: iter(column) for name, column in columns.items() if column is not None}
    groups = [
        replace(g, responses=tuple(replace(r, **{n: next(c) for n, c in given.items()}) for r in g.responses))
        for g in batch.groups
    ]
    return Batch(tuple(groups))


def _whitened(team: Processes, updates: list[Update]) -> list[Update]:
    """Bring the advantages of all tokens of all processes to mean 0 and standard deviation 1."""
    rows = [a for batches in updates for b in batches for r in _own(b) for a in r.advantages]
    values = torch.cat(team.gather(torch.tensor(rows, dtype=torch.float64)))
    mean, spread = float(values.mean()), float(values.std(correction=0)) + 1e-8

    def white(batch: Batch) -> Batch:
        return _changed(batch, advantages=[tuple((a - mean) / spread for a in r.advantages) for r in _own(batch)])

    return [[white(batch) for batch in batches] for batches in updates]


class Critic:
    """V(s) = w·φ(s), φ the hidden state before the output layer at length 1, and a constant beside it.

    Args:
        learning_rate: Step on the mean of ½(V − return)²; stable up to 1, because no φ is longer than √2.

    Attributes:
        weight: `Float[features + 1]`; None until something was learnt: V is 0 everywhere.
    """

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self.weight: Tensor | None = None

    def values(self, features: Tensor) -> Tensor:
        """Return V of each state.

        Args:
            features: `Float[..., features]`, as `scores_and_features` gives them.
        """
        if self.weight is None:
            return features.new_zeros(features.shape[:-1])
        weight = self.weight.to(features.device)
        return features @ weight[:-1] + weight[-1]

    def learn(self, features: Tensor, returns: Tensor) -> None:
        """Make one step towards the returns, the same in all processes: over what any of them has seen.

        Args:
            features: `Float[states, features]`, of this process.
            returns: `Float[states]`.
        """
        if self.weight is None:
            self.weight = features.new_zeros(features.shape[-1] + 1)
        error = returns - self.values(features)
        own = torch.cat([features.T @ error, error.sum()[None]])
        pulls, states = zip(*processes().gather((own.cpu(), len(error))), strict=True)
        pull = torch.stack(pulls).sum(0).to(own.device) / sum(states)
        # Half the step: φ and the constant together have length √2.
        self.weight = self.weight.to(pull.device) + 0.5 * self._learning_rate * pull


def scores_and_features(model: Any, scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Score responses under the policy, and take the hidden states on the way.

    Args:
        model: The policy, in evaluation mode and without gradients.
        scorer: How responses are scored.
        batch: The responses.

    Returns:
        `Float[responses, tokens]`, log-probabilities; `Bool[responses, tokens]`, where there are tokens;
        `Float[responses, tokens, features]`, the hidden state that predicts each token, at length 1.
    """
    with _hidden_behind_logits(model) as head:
        found = scorer(model, batch)
    features = found.logits[:, -head.width :].float()
    logits = found.logits[:, : -head.width]
    scores = scores_from_logits(ResponseLogits(logits, found.targets, found.rows, found.columns, found.shape))
    laid_out = features.new_zeros((*found.shape, head.width))
    laid_out[found.rows, found.columns] = torch.nn.functional.normalize(features, dim=-1)
    return scores.logps, scores.mask, laid_out


class _Head:
    width = 0


@contextmanager
def _hidden_behind_logits(model: Any) -> Generator[_Head]:
    """Make the output layer hand its input on, behind the logits: scorers pick both at the same places.

    Raises:
        ModelError: The model has no output layer that could be watched.
    """
    layer, head = model.get_output_embeddings(), _Head()
    if layer is None:
        raise ModelError(
            f"{type(model).__name__}: has no output layer whose input ppo's value function could read; use grpo"
        )

    def hand_on(module: Any, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        head.width = given[0].shape[-1]
        return torch.cat([logits, given[0].to(logits.dtype)], -1)

    handle = layer.register_forward_hook(hand_on)
    try:
        yield head
    finally:
        handle.remove()
