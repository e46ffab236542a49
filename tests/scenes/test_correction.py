"""Corrections: right, of the same form, and with no fact changed that need not be."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from cwdpo.scenes.grammar import count_errors, is_correct, sample_caption
from cwdpo.scenes.scene_correction import corrected
from cwdpo.scenes.scene_negatives import negative
from cwdpo.scenes.world import sample_scene

seeds = st.integers(0, 2**32)


@given(seeds, st.sampled_from(["hard", "medium", "easy"]))
def test_as_many_facts_change_as_are_wrong(seed: int, difficulty: str) -> None:
    """The least that can be changed is what is wrong in the most favourable reading (`count_errors`)."""
    rng = random.Random(seed)
    scene = sample_scene(rng, "train", three=0.5)
    wrong = negative(sample_caption(scene, rng), scene, difficulty, rng)
    right = corrected(wrong, scene)
    assert right is not None and is_correct(right.text, scene)
    assert (right.nouns, right.phrases) == (wrong.nouns, wrong.phrases)
    facts = [
        [value for m in c.meaning.mentions for value in (m.size, m.colour, m.kind)] + list(c.meaning.relations)
        for c in (wrong, right)
    ]
    changed = sum(a != b for a, b in itertools.zip_longest(*facts))
    assert changed == count_errors(wrong.meaning, scene)


@given(seeds)
def test_what_is_right_stays(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng, "train", three=0.5)
    caption = sample_caption(scene, rng)
    assert corrected(caption, scene) == caption


def test_too_few_shapes_cannot_be_put_right() -> None:
    rng = random.Random(0)
    two, three = sample_scene(rng, "train", three=0.0), sample_scene(rng, "train", three=1.0)
    assert corrected(sample_caption(two, rng), three) is None
