"""Responses that the policy samples for the next updates, with their rewards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from cwdpo.errors import DataError, NonFiniteError
from cwdpo.files import text_digest
from cwdpo.methods.grpo import group_advantages
from cwdpo.methods.on_policy import OnPolicyMethod
from cwdpo.models.fsdp import is_sharded
from cwdpo.models.generation import sample_tokens
from cwdpo.objectives.rewards import Reward
from cwdpo.objectives.sampled import SampledResponse
from cwdpo.processes import Processes, processes
from cwdpo.scoring.batch import Batch, EncodedGroup
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.full_sequence import prompt_inputs
from cwdpo.training.nonfinite import not_finite
from cwdpo.training.rollout_scoring import Weigher

__all__ = ["Rollouts", "who_waits"]

logger = logging.getLogger(__name__)

Update = list[Batch]
"""The micro-batches of an update."""


class Rollouts:
    """Gives the prompts of the next updates responses of the policy's own.

    What is sampled depends on the seed, the update, its prompts and the policy alone, not on which process trains on
    what. What is sampled for updates that are still to come is part of a checkpoint: by then the policy is another.

    Args:
        method: What is trained.
        encoder: Prompt encoder.
        reward: What responses earn.
        weigher: Gives them what their loss compares with.
        seed: The run's.
    """

    def __init__(
        self,
        method: OnPolicyMethod,
        encoder: PromptEncoder,
        reward: Reward,
        weigher: Weigher,
        seed: int,
    ) -> None:
        self._method, self._encoder, self._reward, self._seed = method, encoder, reward, seed
        self.weigher = weigher
        self._ready: list[Update] = []
        self._kept: list[Any] = []
        self._told = False

    def next(self, model: Any, fetch: Callable[[], Update], update: int) -> Update:
        """Return this process's micro-batches of the next update.

        Args:
            model: The policy.
            fetch: Gives the micro-batches of one update after another, none at the end of an epoch.
            update: The update, from 0.
        """
        if self._kept:
            self._ready = self._with_kept(self._team.each(lambda: [fetch() for _ in self._kept]))
            self._kept = []
        if not self._ready:
            fetched = self._team.each(lambda: [fetch() for _ in range(self._method.rollout_updates)])
            self._ready = self._sample(model, [batches for batches in fetched if batches], update)
        return self._ready.pop(0)

    @property
    def _team(self) -> Processes:
        return processes()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a run that resumes from here needs, with any number of processes, in JSON's types."""
        weight = self.weigher.critic.weight if self.weigher.critic is not None else None
        places, _ = places_of(self._team, self._ready)
        updates: list[Any] = []
        for batches, own in zip(self._ready, places, strict=True):
            rows = [[asdict(r) for r in g.responses] for b in batches for g in b.groups]
            found = dict(row for part in self._team.gather(list(zip(own, rows, strict=True))) for row in part)
            updates.append([[found[place] for place in sorted(found)]])
        return {"updates": updates or self._kept, "critic": None if weight is None else weight.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._ready, self._kept = [], state["updates"]
        if self.weigher.critic is not None:
            weight = state["critic"]
            self.weigher.critic.weight = None if weight is None else torch.tensor(weight)

    def _with_kept(self, updates: list[Update]) -> list[Update]:
        """Give fetched prompts the responses that a checkpoint has kept for them."""
        places, total = places_of(self._team, updates)
        rows = [row for update in self._kept for batch in update for row in batch]
        assert len(rows) == total
        kept = [tuple(_response(r) for r in rows[place]) for own in places for place in own]
        return _laid_out(updates, kept)

    # -- sampling --------------------------------------------------------------------------------------------------

    def _sample(self, model: Any, updates: list[Update], update: int) -> list[Update]:
        """Sample responses for the prompts of some updates, and weigh them."""
        team, groups = self._team, [g for batches in updates for batch in batches for g in batch.groups]
        places, total = places_of(team, updates)
        team.each(lambda: self._check_length(groups))
        waiting = who_waits(total, self._method.rollout_batch_size, team.size)
        if waiting and team.main and not self._told:
            logger.warning(waiting)
        self._told = True
        drawn = answered_together(
            team,
            groups,
            [place for own in places for place in own],
            total,
            self._method.rollout_batch_size,
            lambda part: self._drawn(model, part, update),
            self.weigher.stand_in if is_sharded(model) else None,
        )
        filled = _laid_out(updates, team.each(lambda: list(map(self._rewarded, groups, drawn))))
        return self.weigher(model, filled)

    def _drawn(self, model: Any, groups: Sequence[EncodedGroup], update: int) -> list[list[tuple[int, ...]]]:
        """Sample the responses to some prompts at once."""
        tokenizer = self._encoder.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        try:
            return sample_tokens(
                model,
                tokenizer,
                prompt_inputs(model, groups, pad),
                count=self._method.samples,
                max_new_tokens=self._method.max_new_tokens,
                without=_never(self._encoder.processor, tokenizer),
                seed=int(text_digest(str(self._seed), f"update {update}", *(g.id for g in groups))[:12], 16),
            )
        except NonFiniteError as error:
            remedy = "lower the learning rate, or train in float32"
            raise not_finite(update + 1, str(error), [g.origin for g in groups], remedy) from None

    def _rewarded(self, group: EncodedGroup, rows: list[tuple[int, ...]]) -> tuple[SampledResponse, ...]:
        """Return a prompt's responses with rewards and, from these, advantages within the prompt."""
        decoded = self._encoder.tokenizer.batch_decode(rows, skip_special_tokens=True)
        texts = [text.strip() for text in decoded]
        rewards = torch.tensor([float(r) for r in self._reward(group, texts)], dtype=torch.float64)
        if rewards.shape != (len(rows),) or not bool(rewards.isfinite().all()):
            raise DataError(f"{group.origin}: the reward gave {rewards.tolist()} for {len(rows)} responses")
        grouped = group_advantages(rewards) if self.weigher.critic is None else rewards
        return tuple(
            SampledResponse(ids=ids, reward=reward, advantages=(advantage,) * len(ids))
            for ids, reward, advantage in zip(rows, rewards.tolist(), grouped.tolist(), strict=True)
        )

    def _check_length(self, groups: Sequence[EncodedGroup]) -> None:
        limit, new = self._encoder.max_length, self._method.max_new_tokens
        for group in groups:
            if limit is not None and len(group.prefix_ids) + new > limit:
                raise DataError(
                    f"{group.origin}: {len(group.prefix_ids)} tokens of prompt and image and stage2.max_new_tokens = "
                    f"{new} are more than the limit of {limit}; lower stage2.max_new_tokens or model.max_pixels"
                )


def _never(processor: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that no answer may hold: images' placeholders and all that frames a turn."""
    named = (getattr(processor, name, None) for name in ("image_token_id", "video_token_id"))
    return {*tokenizer.all_special_ids, *(token for token in named if token is not None)}


def _laid_out(updates: Sequence[Update], responses: Sequence[tuple[SampledResponse, ...]]) -> list[Update]:
    """Return micro-batches with responses, which are given prompt by prompt."""
    left = iter(responses)
    return [[Batch(tuple(replace(g, responses=next(left)) for g in b.groups)) for b in batches] for batches in updates]


def _response(row: dict[str, Any]) -> SampledResponse:
    as_tuples = ("ids", "advantages", "old", "reference")
    kept: dict[str, Any] = {name: tuple(v) if name in as_tuples and v is not None else v for name, v in row.items()}
    return SampledResponse(**kept)


Answers = list[tuple[int, ...]]
"""The responses to a prompt, as tokens."""


def places_of(team: Processes, updates: Sequence[Sequence[Batch]]) -> tuple[list[list[int]], int]:
    """Return where this process's prompts stand in the order that one process would have them in.

    Args:
        team: The processes that train together.
        updates: This process's micro-batches, update by update.

    Returns:
        The places of the prompts of every update, counted through all updates; how many places there are.
    """
    sizes = team.gather([[len(b.groups) for b in batches] for batches in updates])
    found: list[list[int]] = []
    place = 0
    for update in range(len(updates)):
        found.append([])
        for turn in zip(*(of[update] for of in sizes), strict=True):
            for rank, size in enumerate(turn):
                if rank == team.rank:
                    found[-1] += range(place, place + size)
                place += size
    return found, place


def answered_together(
    team: Processes,
    groups: Sequence[EncodedGroup],
    places: Sequence[int],
    total: int,
    size: int,
    answer: Callable[[list[EncodedGroup]], list[Answers]],
    stand_in: EncodedGroup | None = None,
) -> list[Answers]:
    """Answer all processes' prompts in the batches that one process would make of them, each by one of the processes.

    In every round all batches have pictures, or none has: processes that share weights call the same parts of a model.

    Args:
        team: The processes.
        groups: This process's prompts.
        places: Their places among those of all.
        total: How many places there are.
        size: Prompts of a batch.
        answer: Answers a batch.
        stand_in: What a process answers that has no batch in a round; None lets it do nothing.

    Returns:
        The answers to this process's prompts.

    Raises:
        NonFiniteError: `answer` raised it, in any of the processes.
    """
    own = {place // size for group, place in zip(groups, places, strict=True) if group.vision}
    pictured = set[int]().union(*team.gather(own))
    rounds: list[list[int]] = []
    for kind in (True, False):
        alike = [batch for batch in range(-(-total // size)) if (batch in pictured) is kind]
        rounds += [alike[i : i + team.size] for i in range(0, len(alike), team.size)]
    ranks = {batch: rank for turn in rounds for rank, batch in enumerate(turn)}
    parcels: list[list[tuple[int, EncodedGroup]]] = [[] for _ in range(team.size)]
    for group, place in zip(groups, places, strict=True):
        parcels[ranks[place // size]].append((place, replace(group, responses=(), references=(), facts={})))
    batches: dict[int, dict[int, EncodedGroup]] = {}
    for place, group in (row for parcel in team.exchange(parcels) for row in parcel):
        batches.setdefault(place // size, {})[place] = group

    def work() -> dict[int, Answers]:
        found: dict[int, Answers] = {}
        broken: NonFiniteError | None = None
        for turn in rounds:
            if team.rank < len(turn):
                batch = batches.pop(turn[team.rank])
                try:
                    found |= zip(sorted(batch), answer([batch[place] for place in sorted(batch)]), strict=True)
                except NonFiniteError as error:  # the others may need this process in rounds to come
                    broken = broken or error
            elif stand_in is not None:
                answer([stand_in if turn[0] in pictured else _without_picture(stand_in)])
        if broken is not None:
            raise broken
        return found

    everyone = {place: answers for found in team.share(work) for place, answers in found.items()}
    return [everyone[place] for place in places]


def who_waits(prompts: int, size: int, processes: int) -> str:
    """Return a line where a round of sampling has fewer batches than there are processes, else nothing.

    Args:
        prompts: Prompts of the round.
        size: Prompts of a batch.
        processes: How many answer them.
    """
    batches = -(-prompts // size)
    if batches >= min(processes, prompts):
        return ""
    return (
        f"{batches} of {processes} processes sample and the others wait: {prompts} prompts are answered {size} at "
        f"once; stage2.rollout_batch_size={max(1, prompts // processes)} shares them out"
    )


def _without_picture(group: EncodedGroup) -> EncodedGroup:
    """Return the end of a prompt, where it asks for an answer."""
    types = {name: values[-2:] for name, values in group.token_types.items()}
    return replace(group, prefix_ids=group.prefix_ids[-2:], token_types=types, vision={}, image_key="")
