"""Scenes: drawn from a seed, read back from JSON, never in two splits."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.errors import DataError
from cwdpo.scenes.world import KINDS, SPLITS, Scene, Shape, sample_scene

seeds = st.integers(0, 2**32)
splits = st.sampled_from(sorted(SPLITS))


def scene_of(seed: int, split: str = "train", three: float = 0.5) -> Scene:
    return sample_scene(random.Random(seed), split, three)


RED_CIRCLE = Shape("circle", "red", "small", column=0, row=0)
BLUE_SQUARE = Shape("square", "blue", "large", column=2, row=1)
PAIR = Scene((RED_CIRCLE, BLUE_SQUARE))


def test_relations_of_a_diagonal() -> None:
    true = [r for r in ("left", "right", "above", "below") if RED_CIRCLE.stands(r, BLUE_SQUARE)]
    assert true == ["left", "above"]
    assert [r for r in ("left", "right", "above", "below") if BLUE_SQUARE.stands(r, RED_CIRCLE)] == ["right", "below"]


def test_split_buckets_cover_all_hashes_once() -> None:
    buckets = [bucket for split in SPLITS.values() for bucket in split]
    assert sorted(buckets) == list(range(100))


@given(seeds, splits)
def test_a_scene_is_of_the_split_it_was_drawn_for(seed: int, split: str) -> None:
    assert scene_of(seed, split).split() == split


@given(seeds, st.integers(-1, 1), st.integers(-1, 1))
def test_split_and_canonical_form_ignore_jitter_and_order(seed: int, dx: int, dy: int) -> None:
    scene = scene_of(seed)
    moved = Scene(
        tuple(Shape(s.kind, s.colour, s.size, s.column, s.row, dx, dy) for s in reversed(scene.shapes)),
    )
    assert moved.canonical() == scene.canonical()
    assert moved.split() == scene.split()


def test_canonical_form_and_split_are_pinned() -> None:
    """Data sets made by different versions stay disjoint only as long as these two never change."""
    assert PAIR.canonical() == '[[0,0,"small","red","circle"],[1,2,"large","blue","square"]]'
    assert PAIR.split() == "train"


@given(seeds)
def test_json_round_trip(seed: int) -> None:
    scene = scene_of(seed)
    assert Scene.from_json(scene.to_json()) == scene


@given(seeds)
def test_same_seed_same_scene(seed: int) -> None:
    assert scene_of(seed) == scene_of(seed)


def test_share_of_three_shapes() -> None:
    rng = random.Random(0)
    three = sum(len(sample_scene(rng, "train", 0.25).shapes) == 3 for _ in range(2000))
    # 2,000 draws with p = .25: 500 with a standard deviation of 19.
    assert 400 < three < 600


def test_everything_that_there_is_occurs() -> None:
    rng = random.Random(0)
    shapes = [shape for _ in range(500) for shape in sample_scene(rng, "test").shapes]
    assert {s.kind for s in shapes} == set(KINDS)
    assert len({(s.colour, s.size) for s in shapes}) == 12
    assert len({(s.column, s.row) for s in shapes}) == 16


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"shapes": 3},
        {"shapes": []},
        {"shapes": [RED_CIRCLE.__dict__]},
        {"shapes": [RED_CIRCLE.__dict__, RED_CIRCLE.__dict__ | {"row": 1}]},
        {"shapes": [RED_CIRCLE.__dict__, BLUE_SQUARE.__dict__ | {"column": 0, "row": 0}]},
        {"shapes": [RED_CIRCLE.__dict__, BLUE_SQUARE.__dict__ | {"colour": "pink"}]},
        {"shapes": [RED_CIRCLE.__dict__, BLUE_SQUARE.__dict__ | {"row": 4}]},
        {"shapes": [RED_CIRCLE.__dict__, BLUE_SQUARE.__dict__ | {"row": "1"}]},
        {"shapes": [RED_CIRCLE.__dict__, {"kind": "square"}]},
    ],
)
def test_no_scene(value: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Scene.from_json(value)


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="no split 'tset'"):
        sample_scene(random.Random(0), "tset")
