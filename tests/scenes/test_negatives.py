"""Negatives: wrong by exactly as much as they say, in the form of the gold caption."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.scenes.grammar import Caption, count_errors, is_correct, parse, sample_caption
from cwdpo.scenes.scene_negatives import negative
from cwdpo.scenes.world import Scene, sample_scene

seeds = st.integers(0, 2**32)


def draw(seed: int, difficulty: str) -> tuple[Scene, Caption, Caption]:
    rng = random.Random(seed)
    scene = sample_scene(rng, "train", three=0.5)
    gold = sample_caption(scene, rng)
    return scene, gold, negative(gold, scene, difficulty, rng)


def attributes(caption: Caption) -> list[str | None]:
    mentions = [value for m in caption.meaning.mentions for value in (m.size, m.colour, m.kind)]
    return [*mentions, *caption.meaning.relations]


@pytest.mark.parametrize(("difficulty", "wrong"), [("hard", 1), ("medium", 2)])
@given(seed=seeds)
def test_exactly_so_many_attributes_are_wrong(difficulty: str, wrong: int, seed: int) -> None:
    scene, gold, bad = draw(seed, difficulty)
    assert count_errors(bad.meaning, scene) == wrong
    assert sum(a != b for a, b in zip(attributes(gold), attributes(bad), strict=True)) == wrong
    assert not is_correct(bad.text, scene)


@given(seeds)
def test_easy_has_all_wrong(seed: int) -> None:
    scene, gold, bad = draw(seed, "easy")
    pairs = list(zip(attributes(gold), attributes(bad), strict=True))
    assert all(a != b for a, b in pairs if a is not None)
    # Colours and kinds are wrong in every reading; sizes and relations may be right of another shape.
    assert 2 * len(scene.shapes) <= count_errors(bad.meaning, scene) <= bad.meaning.attributes()
    assert not is_correct(bad.text, scene)


@pytest.mark.parametrize("difficulty", ["hard", "medium", "easy"])
@given(seed=seeds)
def test_form_and_synonyms_are_those_of_the_gold(difficulty: str, seed: int) -> None:
    _, gold, bad = draw(seed, difficulty)
    assert parse(bad.text) == bad.meaning
    assert (bad.nouns, bad.phrases) == (gold.nouns, gold.phrases)
    assert [m.size is None for m in bad.meaning.mentions] == [m.size is None for m in gold.meaning.mentions]


def test_hard_negatives_touch_every_kind_of_attribute() -> None:
    touched: Counter[str] = Counter()
    for seed in range(300):
        _, gold, bad = draw(seed, "hard")
        slot = next(i for i, (a, b) in enumerate(zip(attributes(gold), attributes(bad), strict=True)) if a != b)
        inside = slot < 3 * len(gold.meaning.mentions)
        touched[("size", "colour", "kind")[slot % 3] if inside else "relation"] += 1
    # Two mentions say about 1 size, 2 colours, 2 kinds and 1 relation; every kind must be well represented.
    assert min(touched[name] for name in ("size", "colour", "kind", "relation")) > 20
    assert sum(touched.values()) == 300
