"""Responses that the policy samples for the next updates, with their rewards and what the loss is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from cwdpo import losses
from cwdpo.errors import DataError, NonFiniteError
from cwdpo.files import text_digest
from cwdpo.models.generation import inference, sample_tokens
from cwdpo.objectives.on_policy import SampledResponse
from cwdpo.objectives.rewards import Reward
from cwdpo.recipe import Stage2Section
from cwdpo.scoring.batch import Batch, EncodedGroup
from cwdpo.scoring.encode import PromptEncoder
from cwdpo.scoring.prompts import prompt_inputs
from cwdpo.scoring.reference import Reference, Scorer
from cwdpo.scoring.token_scores import scores_from_logits
from cwdpo.training.critic import Critic, scores_and_features

__all__ = ["Rollouts"]

Update = list[Batch]
"""The micro-batches of an update."""


class Rollouts:
    """Gives the prompts of the next updates responses of the policy's own.

    What is sampled depends on the seed, the update, the prompts and the policy alone. What is sampled for updates that
    are still to come is part of a checkpoint: by then the policy is another.

    Args:
        settings: The recipe's.
        encoder: Prompt encoder.
        scorer: How responses are scored.
        reward: What they earn.
        reference: Where reference log-probabilities come from; None where `kl` is 0.
        seed: The run's.
    """

    def __init__(
        self,
        settings: Stage2Section,
        encoder: PromptEncoder,
        scorer: Scorer,
        reward: Reward,
        reference: Reference | None,
        seed: int,
    ) -> None:
        self.settings, self._encoder, self._scorer = settings, encoder, scorer
        self._reward, self._reference, self._seed = reward, reference, seed
        self._critic = Critic(settings.value_learning_rate) if settings.objective == "ppo" else None
        self._ready: list[Update] = []
        self._kept: list[Any] = []

    def next(self, model: Any, fetch: Callable[[], Update], update: int) -> Update:
        """Return the micro-batches of the next update.

        Args:
            model: The policy.
            fetch: Gives the micro-batches of one update after another, none at the end of an epoch.
            update: The update, from 0.
        """
        if self._kept:
            self._ready = [_with_responses(fetch(), rows) for rows in self._kept]
            self._kept = []
        if not self._ready:
            fetched = (fetch() for _ in range(self.settings.rollout_updates))
            self._ready = self._sample(model, [batches for batches in fetched if batches], update)
        return self._ready.pop(0)

    def state(self) -> dict[str, Any]:
        """Return what a run that goes on from here needs, in JSON's types."""
        weight = self._critic.weight if self._critic is not None else None
        rows = [[[[asdict(r) for r in g.responses] for g in b.groups] for b in update] for update in self._ready]
        return {"updates": rows or self._kept, "critic": None if weight is None else weight.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._ready, self._kept = [], state["updates"]
        if self._critic is not None:
            weight = state["critic"]
            self._critic.weight = None if weight is None else torch.tensor(weight)

    # -- sampling --------------------------------------------------------------------------------------------------

    def _sample(self, model: Any, updates: list[Update], update: int) -> list[Update]:
        """Sample responses for the prompts of some updates, and weigh them."""
        groups = [group for batches in updates for batch in batches for group in batch.groups]
        size = self.settings.rollout_batch_size
        parts = (groups[i : i + size] for i in range(0, len(groups), size))
        answered = iter([group for part in parts for group in self._answered(model, part, update)])
        filled = [[Batch(tuple(next(answered) for _ in b.groups)) for b in batches] for batches in updates]
        with inference(model):
            if self._critic is not None:
                return self._with_values(model, filled)
            return [[self._scored(model, batch) for batch in batches] for batches in filled]

    def _answered(self, model: Any, groups: Sequence[EncodedGroup], update: int) -> list[EncodedGroup]:
        """Give some prompts their responses, rewards and, from these, advantages within a prompt."""
        s, tokenizer = self.settings, self._encoder.tokenizer
        self._check_length(groups)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        drawn = sample_tokens(
            model,
            tokenizer,
            prompt_inputs(model, groups, pad),
            count=s.samples,
            max_new_tokens=s.max_new_tokens,
            without=_never(self._encoder.processor, tokenizer),
            seed=int(text_digest(str(self._seed), f"update {update}", *(g.id for g in groups))[:12], 16),
        )
        found: list[EncodedGroup] = []
        for group, rows in zip(groups, drawn, strict=True):
            texts = [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
            rewards = torch.tensor([float(r) for r in self._reward(group, texts)], dtype=torch.float64)
            if rewards.shape != (len(rows),) or not bool(rewards.isfinite().all()):
                raise DataError(f"{group.origin}: the reward gave {rewards.tolist()} for {len(rows)} responses")
            grouped = losses.group_advantages(rewards) if self._critic is None else rewards
            responses = tuple(
                SampledResponse(ids=ids, reward=reward, advantages=(advantage,) * len(ids))
                for ids, reward, advantage in zip(rows, rewards.tolist(), grouped.tolist(), strict=True)
            )
            found.append(replace(group, responses=responses))
        return found

    def _check_length(self, groups: Sequence[EncodedGroup]) -> None:
        limit, new = self._encoder.max_length, self.settings.max_new_tokens
        for group in groups:
            if limit is not None and len(group.prefix_ids) + new > limit:
                raise DataError(
                    f"{group.origin}: {len(group.prefix_ids)} tokens of prompt and image and stage2.max_new_tokens = "
                    f"{new} are more than the limit of {limit}; lower stage2.max_new_tokens or model.max_pixels"
                )

    def _scored(self, model: Any, batch: Batch) -> Batch:
        """Add log-probabilities of the reference, and of the policy as it is now where it will be another."""
        old = reference = None
        if self.settings.rollout_updates > 1:
            old = scores_from_logits(self._scorer(model, batch)).logps
        if self._reference is not None:
            reference = self._reference.per_token(model, batch)
        return _changed(batch, old=_finite(batch, old), reference=_finite(batch, reference))

    # -- PPO -------------------------------------------------------------------------------------------------------

    def _with_values(self, model: Any, updates: list[Update]) -> list[Update]:
        """Put generalised advantages in the place of rewards, whitened over all; then teach the value function."""
        s, critic = self.settings, self._critic
        assert critic is not None
        filled: list[Update] = []
        lessons: list[list[tuple[Tensor, Tensor]]] = []
        for batches in updates:
            filled.append([])
            lessons.append([])
            for batch in batches:
                logps, mask, features = scores_and_features(model, self._scorer, batch)
                values = critic.values(features) * mask
                rewards = torch.zeros_like(logps)
                reference = None
                if self._reference is not None:
                    reference = self._reference.per_token(model, batch)
                    rewards = -s.kl * (logps - reference) * mask
                sizes = [len(r.ids) for r in batch.responses]
                earned = torch.tensor([r.reward for g in batch.groups for r in _own(g)])
                rewards[range(len(sizes)), [n - 1 for n in sizes]] += earned.to(rewards)
                advantages = losses.generalised_advantages(rewards, values, mask, gae_lambda=s.gae_lambda)
                errors = advantages.square().sum(-1) / mask.sum(-1)
                made = _changed(
                    batch,
                    old=_finite(batch, logps),
                    reference=_finite(batch, reference),
                    advantages=_finite(batch, advantages),
                )
                filled[-1].append(_changed(made, value_error=errors.tolist()))
                lessons[-1].append((features[mask], (advantages + values)[mask]))
        for lesson in lessons:
            features, returns = (torch.cat(parts) for parts in zip(*lesson, strict=True))
            critic.learn(features, returns)
        return _whitened(filled)


def _own(group: EncodedGroup) -> list[SampledResponse]:
    return [r for r in group.responses if isinstance(r, SampledResponse)]


def _never(processor: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that no answer may hold: images' placeholders and all that frames a turn."""
    named = (getattr(processor, name, None) for name in ("image_token_id", "video_token_id"))
    return {*tokenizer.all_special_ids, *(token for token in named if token is not None)}


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


def _whitened(updates: list[Update]) -> list[Update]:
    """Bring the advantages of all tokens to mean 0 and standard deviation 1."""
    rows = [a for batches in updates for b in batches for g in b.groups for r in _own(g) for a in r.advantages]
    values = torch.tensor(rows, dtype=torch.float64)
    mean, spread = float(values.mean()), float(values.std(correction=0)) + 1e-8

    def white(batch: Batch) -> Batch:
        own = [r for g in batch.groups for r in _own(g)]
        return _changed(batch, advantages=[tuple((a - mean) / spread for a in r.advantages) for r in own])

    return [[white(batch) for batch in batches] for batches in updates]


def _with_responses(batches: Update, rows: Sequence[Any]) -> Update:
    """Give fetched prompts the responses that a checkpoint kept for them."""
    return [
        Batch(
            tuple(
                replace(group, responses=tuple(_response(row) for row in kept))
                for group, kept in zip(batch.groups, part, strict=True)
            )
        )
        for batch, part in zip(batches, rows, strict=True)
    ]


def _response(row: dict[str, Any]) -> SampledResponse:
    as_tuples = ("ids", "advantages", "old", "reference")
    kept: dict[str, Any] = {name: tuple(v) if name in as_tuples and v is not None else v for name, v in row.items()}
    return SampledResponse(**kept)
