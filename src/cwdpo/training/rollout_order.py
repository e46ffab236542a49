"""Where the prompts of each process stand among those of all, and which of them are answered together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cwdpo.errors import NonFiniteError
from cwdpo.processes import Processes
from cwdpo.scoring.batch import Batch, EncodedGroup

__all__ = ["answered_together", "places_of", "who_waits"]

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
