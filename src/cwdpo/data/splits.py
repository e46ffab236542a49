"""The split into the two stages: by image, seeded, disjoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cwdpo.data.schema import ImageRef, PromptGroup
from cwdpo.errors import DataError, one_line
from cwdpo.files import text_digest

__all__ = [
    "PARTS",
    "SharedOut",
    "content_digest",
    "prompt_digest",
    "share_out",
]

PARTS = ("stage1", "stage2", "held_out")


@dataclass(frozen=True)
class SharedOut:
    """Which part every group goes to, and in which order: by rank, then by id.

    Attributes:
        ranks: `Int64[groups]`, equal for groups that stay together.
        bounds: For each part, its first rank and the one after its last.
    """

    ranks: Any
    bounds: Mapping[str, tuple[int, int]]


def share_out(
    images: Any,
    digests: bytes,
    links: Iterable[Sequence[int]],
    *,
    stage1_share: float,
    held_out: float,
    seed: int,
) -> SharedOut:
    """Share groups out: bundles of those that share an image are put in the order of a hash of seed and content.

    They are cut where the counts of groups come nearest to what is asked; so the parts do not depend on the order of
    the file, and few groups move when rows are added. Groups without an image stay together where their prompts are
    equal. (The paper says 75/25 and neither the unit nor the seed.) Takes some dozen bytes a group, no object.

    Args:
        images: `Int64[groups]`, the number of each group's first image.
        digests: SHA-256 of every image, one after the other; images of equal content are one.
        links: Numbers of the images of groups that have several.
        stage1_share: Share of the groups that are not held out, 0 to 1, that go to Stage 1; the rest is Stage 2's.
        held_out: Groups to hold out: a number, or a share of all where below 1.
        seed: Another seed, another split.

    Raises:
        DataError: Shares out of range, more held out than there is, or too few images for a part that was asked for.
    """
    count = len(images)
    _check_shares(count, stage1_share, held_out)
    contents, uniques = _contents(digests)
    tops = _tied(contents, len(uniques), links)
    used, bundle = np.unique(tops[contents[images]], return_inverse=True)
    names = (digests[32 * i : 32 * i + 32].hex() for i in uniques[used].tolist())
    order = _sorted_words(b"".join(bytes.fromhex(text_digest(str(seed), name)) for name in names))
    sizes = np.bincount(bundle, minlength=len(used))[order]
    wanted = round(held_out * count) if held_out < 1 else int(held_out)
    first = _cut(sizes, wanted)
    middle = first + _cut(sizes[first:], stage1_share * int(sizes[first:].sum()))
    bounds = {"stage1": (first, middle), "stage2": (middle, len(used)), "held_out": (0, first)}
    for share, (name, (low, high)) in zip((stage1_share, 1 - stage1_share, held_out), bounds.items(), strict=True):
        if share > 0 and low == high:
            raise DataError(
                f"{count} rows with {len(used)} different images leave nothing for {name} (data.stage1_share "
                f"= {stage1_share}, data.held_out = {held_out}); give more images or other shares"
            )
    place = np.empty(len(used), np.int64)
    place[order] = np.arange(len(used))
    return SharedOut(place[bundle], bounds)


def _check_shares(count: int, stage1_share: float, held_out: float) -> None:
    if not 0 <= stage1_share <= 1:
        raise DataError(f"data.stage1_share = {stage1_share}: must be from 0 to 1, for example 0.75")
    if held_out < 0 or (held_out >= 1 and held_out != math.floor(held_out)):
        raise DataError(f"data.held_out = {held_out}: must be a share below 1 or a whole number of rows")
    if held_out >= count:
        raise DataError(f"data.held_out = {held_out:g}: must be less than the {count} rows there are")


def prompt_digest(group: PromptGroup) -> str:
    """Return what groups without an image share where their prompts are equal."""
    return text_digest("prompt", json.dumps([dict(m) for m in group.messages], sort_keys=True))


def content_digest(ref: ImageRef) -> str:
    """Return the SHA-256 of an image.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return ref.digest()
    except OSError as error:
        raise DataError(f"image {ref.name}: cannot be read ({one_line(error.strerror or error)})") from error


def _sorted_words(digests: bytes) -> Any:
    """Return the order in which digests of 32 bytes are sorted."""
    words = np.frombuffer(digests, ">u8").reshape(-1, 4)
    return np.lexsort([words[:, i] for i in (3, 2, 1, 0)])


def _contents(digests: bytes) -> tuple[Any, Any]:
    """Return for every image the number of its content, sorted by digest, and for every content an image."""
    words = np.frombuffer(digests, ">u8").reshape(-1, 4)
    order = _sorted_words(digests)
    new = np.ones(len(order), bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    contents = np.empty(len(order), np.int64)
    contents[order] = np.cumsum(new) - 1
    return contents, order[new]


def _tied(contents: Any, count: int, links: Iterable[Sequence[int]]) -> Any:
    """Return for every content the least one that it is linked to by groups with several images."""
    parent = np.arange(count)

    def top(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    for group in links:
        first, *others = (int(contents[image]) for image in group)
        for other in others:
            low, high = sorted((top(first), top(other)))
            parent[high] = low
    while (above := parent[parent] != parent).any():
        parent[above] = parent[parent[above]]
    return parent


def _cut(sizes: Any, wanted: float) -> int:
    """Return how many bundles from the start come nearest to `wanted` groups."""
    taken = np.concatenate([[0], np.cumsum(sizes)])
    farther = np.abs(taken[1:] - wanted) >= np.abs(taken[:-1] - wanted)
    return int(farther.argmax()) if farther.any() else len(sizes)
