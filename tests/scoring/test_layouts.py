"""Padded rows and the packed row, drawn token by token; who sees whom, by a plain reading of the rule."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.scoring.attention_masks import dense, rule_of
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse
from cwdpo.scoring.sequence_layout import Layout

CPU = torch.device("cpu")


def group(prefix: tuple[int, ...], *responses: tuple[int, ...]) -> EncodedGroup:
    answers = tuple(EncodedResponse(ids, "chosen", "", None, "") for ids in responses)
    return EncodedGroup("", "", prefix, {}, {}, answers)


TWO = Batch((group((11, 12, 13), (21, 22, 23), (31, 32)), group((41,), (51,), (61, 62, 63))))
"""Last tokens of responses are targets only: 23, 32, 51 and 63 are nowhere."""


def test_padded() -> None:
    layout = Layout.padded(TWO)
    assert layout.ids.tolist() == [[11, 12, 13, 21, 22, 31], [0, 0, 41, 61, 62, 0]]
    assert layout.groups.tolist() == [[0, 0, 0, 0, 0, 0], [-1, -1, 1, 1, 1, -1]]
    assert layout.segments.tolist() == [[0, 0, 0, 1, 1, 2], [-1, -1, 0, 2, 2, -1]]
    assert layout.index.tolist() == [[0, 1, 2, 3, 4, 3], [0, 0, 0, 1, 2, 0]]
    assert (layout.places, layout.prefix_end) == (((0, 0), (1, 2)), 3)
    assert layout.predicting().tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]]


def test_packed() -> None:
    layout = Layout.packed(TWO)
    assert layout.ids.tolist() == [[11, 12, 13, 21, 22, 31, 41, 61, 62]]
    assert layout.groups.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert layout.segments.tolist() == [[0, 0, 0, 1, 1, 2, 0, 2, 2]]
    assert layout.index.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    assert (layout.places, layout.prefix_end) == (((0, 0), (0, 6)), None)
    assert layout.predicting().tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 1]]


def test_prefixes_that_meet() -> None:
    """Responses of one token add none: the next prefix follows at once, and both last tokens predict."""
    layout = Layout.packed(Batch((group((1, 2), (9,)), group((3, 4), (8,), (7,)), group((5,), (6,)))))
    assert layout.ids.tolist() == [[1, 2, 3, 4, 5]]
    assert layout.predicting().tolist() == [[0, 1, 0, 1, 1]]


def test_one_group_is_packed_already() -> None:
    one = Batch(TWO.groups[:1])
    padded, packed = Layout.padded(one), Layout.packed(one)
    for name in ("ids", "groups", "segments", "index"):
        assert torch.equal(getattr(padded, name), getattr(packed, name))
    assert (padded.places, padded.prefix_end) == (packed.places, packed.prefix_end)


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3)), min_size=1, max_size=3
    ),
    packed=st.booleans(),
    window=st.sampled_from([None, 1, 2, 4]),
    image=st.booleans(),
)
def test_who_sees_whom(shapes: list[tuple[int, list[int]]], packed: bool, window: int | None, image: bool) -> None:
    """Every pair of places, asked in words: (group, part, place in prefix + response) of either."""
    batch = Batch(tuple(group((1,) * p, *[(1,) * n for n in answers]) for p, answers in shapes))
    layout = Layout.packed(batch) if packed else Layout.padded(batch)
    # An image is the first two tokens of a prefix, all images under one number.
    blocks = torch.where((layout.segments == 0) & (layout.index < 2) & image, 0, -1)
    seen = dense(rule_of(layout, blocks, CPU, window), layout, CPU)
    rows, width = layout.ids.shape
    assert seen.shape == (rows, width, width)
    for row in range(rows):
        tokens = list(
            zip(*(t[row].tolist() for t in (layout.groups, layout.segments, layout.index, blocks)), strict=True)
        )
        for query, key in itertools.product(range(width), repeat=2):
            (g, s, i, b), (other_group, part, place, block) = tokens[query], tokens[key]
            known = place <= i and part in (0, s)
            near = window is None or i - place < window
            expected = g == other_group >= 0 and (known or b == block == 0) and near
            assert bool(seen[row, query, key]) == (expected or query == key)
