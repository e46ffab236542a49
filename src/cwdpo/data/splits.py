"""The split into the two stages: by image, seeded, disjoint."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from cwdpo.data.schema import ImageRef, PromptGroup
from cwdpo.errors import DataError, one_line
from cwdpo.files import text_digest

__all__ = ["StageSplit", "split_indices", "split_stages"]

T = TypeVar("T")


@dataclass(frozen=True)
class StageSplit(Generic[T]):
    """Three parts that share no image, in an order that depends on the seed and the groups alone.

    Attributes:
        stage1: For SFT-C.
        stage2: For preference optimisation.
        held_out: For probes and evaluation, never trained on.
    """

    stage1: tuple[T, ...]
    stage2: tuple[T, ...]
    held_out: tuple[T, ...]


def split_stages(
    groups: Sequence[PromptGroup], *, stage1_share: float = 0.75, held_out: float = 0, seed: int = 0
) -> StageSplit[PromptGroup]:
    """Split groups by image; see `split_indices`."""
    split = split_indices(groups, stage1_share=stage1_share, held_out=held_out, seed=seed)
    return StageSplit(
        stage1=tuple(groups[i] for i in split.stage1),
        stage2=tuple(groups[i] for i in split.stage2),
        held_out=tuple(groups[i] for i in split.held_out),
    )


def split_indices(
    groups: Sequence[PromptGroup], *, stage1_share: float = 0.75, held_out: float = 0, seed: int = 0
) -> StageSplit[int]:
    """Split groups by image: those that share one, by content and whatever its file is called, stay together.

    Groups without an image stay together where their prompts are equal. Bundles of groups are put in the order of a
    hash of seed and content, and cut where the counts of groups come nearest to what is asked; so the parts do not
    depend on the order of the file, and few groups move when rows are added. (The paper says 75/25 and neither the
    unit nor the seed.)

    Args:
        groups: The data, read one group at a time.
        stage1_share: Share of the groups that are not held out, 0 to 1, that go to Stage 1; the rest is Stage 2's.
        held_out: Groups to hold out: a number, or a share of all where below 1.
        seed: Another seed, another split.

    Returns:
        Indices into `groups`.

    Raises:
        DataError: Shares out of range, more held out than there is, an image that cannot be read, or too few images
            for a part that was asked for.
    """
    _check_shares(len(groups), stage1_share, held_out)
    keys = _content_keys(groups)
    names = {index: groups[index].id for index in range(len(groups))}
    bundles = _bundles(keys)
    order = sorted(bundles, key=lambda key: text_digest(str(seed), key))
    wanted = round(held_out * len(groups)) if held_out < 1 else int(held_out)
    first, rest = _cut([len(bundles[key]) for key in order], wanted)
    middle, _ = _cut([len(bundles[key]) for key in order[first:]], stage1_share * rest)
    parts = [order[first : first + middle], order[first + middle :], order[:first]]
    for part, share, name in zip(
        parts, (stage1_share, 1 - stage1_share, held_out), StageSplit.__annotations__, strict=True
    ):
        if share > 0 and not part:
            raise DataError(
                f"{len(groups)} rows with {len(bundles)} different images leave nothing for {name} (data.stage1_share "
                f"= {stage1_share}, data.held_out = {held_out}); give more images or other shares"
            )
    stage1, stage2, kept = (
        tuple(i for key in part for i in sorted(bundles[key], key=lambda i: (names[i], i))) for part in parts
    )
    _verify_disjoint(keys, (stage1, stage2, kept))
    return StageSplit(stage1, stage2, kept)


def _check_shares(count: int, stage1_share: float, held_out: float) -> None:
    if not 0 <= stage1_share <= 1:
        raise DataError(f"data.stage1_share = {stage1_share}: must be from 0 to 1, for example 0.75")
    if held_out < 0 or (held_out >= 1 and held_out != math.floor(held_out)):
        raise DataError(f"data.held_out = {held_out}: must be a share below 1 or a whole number of rows")
    if held_out >= count:
        raise DataError(f"data.held_out = {held_out:g}: must be less than the {count} rows there are")


def _content_keys(groups: Sequence[PromptGroup]) -> list[tuple[str, ...]]:
    """Return what each group may not share with another part: digests of its images, or of its prompt."""
    known: dict[str, str] = {}
    keys: list[tuple[str, ...]] = []
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(groups), 256):
            part = [groups[i] for i in range(start, min(start + 256, len(groups)))]
            fresh = {ref.path: ref for group in part for ref in group.images if ref.path and ref.path not in known}
            known.update(zip(map(str, fresh), pool.map(_digest, fresh.values()), strict=True))
            keys += [_keys_of(group, known) for group in part]
    return keys


def _keys_of(group: PromptGroup, known: Mapping[str, str]) -> tuple[str, ...]:
    if group.images:
        return tuple(known[ref.path] if ref.path else _digest(ref) for ref in group.images)
    return (text_digest("prompt", json.dumps([dict(m) for m in group.messages], sort_keys=True)),)


def _digest(ref: ImageRef) -> str:
    try:
        return ref.digest()
    except OSError as error:
        raise DataError(f"image {ref.name}: cannot be read ({one_line(error.strerror or error)})") from error


def _bundles(keys: Sequence[tuple[str, ...]]) -> dict[str, list[int]]:
    """Return groups that are linked by shared images, each bundle under its least digest."""
    parent: dict[str, str] = {}

    def top(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for group in keys:
        for key in group:
            low, high = sorted((top(group[0]), top(key)))
            parent[high] = low
    bundles: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(keys):
        bundles[top(group[0])].append(index)
    return dict(bundles)


def _cut(sizes: Sequence[int], wanted: float) -> tuple[int, int]:
    """Return how many bundles from the start come nearest to `wanted` groups, and how many groups are left."""
    taken = count = 0
    for size in sizes:
        if abs(taken + size - wanted) >= abs(taken - wanted):
            break
        taken, count = taken + size, count + 1
    return count, sum(sizes) - taken


def _verify_disjoint(keys: Sequence[tuple[str, ...]], parts: Sequence[tuple[int, ...]]) -> None:
    contents = [{key for i in part for key in keys[i]} for part in parts]
    for i, one in enumerate(contents):
        for other in contents[i + 1 :]:
            assert not one & other, "two parts of the split share an image"
    assert sorted(i for part in parts for i in part) == list(range(len(keys))), "the split lost or doubled a row"
