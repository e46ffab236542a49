"""Captions: what they say, and whether that is right."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.scenes.grammar import (
    PROMPT,
    Caption,
    Meaning,
    Mention,
    caption_words,
    count_errors,
    is_correct,
    paraphrases,
    parse,
    sample_caption,
)
from cwdpo.scenes.world import Scene, Shape, sample_scene

seeds = st.integers(0, 2**32)

RED = Shape("circle", "red", "small", column=0, row=0)
BLUE = Shape("square", "blue", "large", column=2, row=1)
GREEN = Shape("cross", "green", "small", column=0, row=2)
PAIR = Scene((RED, BLUE))
TRIPLE = Scene((RED, BLUE, GREEN))


def scene_and_caption(seed: int) -> tuple[Scene, Caption]:
    rng = random.Random(seed)
    scene = sample_scene(rng, "train", three=0.5)
    return scene, sample_caption(scene, rng)


@given(seeds)
def test_every_generated_caption_is_right(seed: int) -> None:
    scene, caption = scene_and_caption(seed)
    assert parse(caption.text) == caption.meaning
    assert count_errors(caption.meaning, scene) == 0
    assert is_correct(caption.text, scene)


@given(seeds)
def test_captions_are_made_of_the_words_listed(seed: int) -> None:
    _, caption = scene_and_caption(seed)
    words = caption.text.split(" ")
    assert set(words) <= set(caption_words())
    # Shortest: a red disc over a blue box. Longest: all sizes said, twice "to the left of".
    assert 7 <= len(words) <= 21


def test_vocabulary() -> None:
    # 6 colours, 10 nouns, 2 sizes; a an and; left right of to the above over below under; describe picture . (the)
    assert len(caption_words()) == 6 + 10 + 2 + 3 + 9 + 3
    assert set(PROMPT.split()) <= set(caption_words())


@pytest.mark.parametrize(
    "text",
    [
        "a red circle left of a blue square",
        "a small red disc to the left of a large blue box",
        "a red circle above a blue box",
        "a blue square right of a small red circle",
        "a large blue box under a red disc",
        "  a red   circle left\tof a blue square\n",
        "an red circle over a blue square",
    ],
)
def test_right_about_the_pair(text: str) -> None:
    assert is_correct(text, PAIR)


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("a red circle right of a blue square", 1),
        ("a large red circle left of a blue square", 1),
        ("a red circle left of a green square", 1),
        ("a red cross left of a green square", 2),
        ("a blue square left of a red circle", 1),
        ("a large red circle below a small blue square", 3),
        # Both colours and kinds; "below" is true when the first mention is read as the blue square.
        ("a yellow cross below a green diamond", 4),
        # Only one can be the red circle: the other is two wrong of the blue square; "right of" holds if it comes first.
        ("a red circle right of a red circle", 2),
    ],
)
def test_errors_about_the_pair(text: str, errors: int) -> None:
    meaning = parse(text)
    assert meaning is not None
    assert count_errors(meaning, PAIR) == errors
    assert not is_correct(text, PAIR)


def test_three_shapes() -> None:
    whole = "a green cross below a red circle and left of a blue square"
    assert parse(whole) == Meaning(
        (Mention("green", "cross"), Mention("red", "circle"), Mention("blue", "square")), ("below", "left")
    )
    assert is_correct(whole, TRIPLE)
    part = "a green cross below a red circle"
    meaning = parse(part)
    assert meaning is not None
    assert count_errors(meaning, TRIPLE) == 0
    assert not is_correct(part, TRIPLE), "true, but it leaves out the blue square"
    # Nothing in a scene of two can be the third shape: all that is said counts, 3 x 2 attributes and 2 relations.
    meaning = parse(whole)
    assert meaning is not None
    assert count_errors(meaning, PAIR) == 8
    assert not is_correct("a red circle above a blue square and above a red circle", PAIR)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "a red circle",
        "red circle left of a blue square",
        "a red circle left a blue square",
        "a red circle left of a blue square .",
        "a red circle left of a blue square and",
        "a red circle left of a blue square left of a blue square",
        "a red small circle left of a blue square",
        "a Red circle left of a blue square",
        "a red circle left of a blue square" * 2,
        "a red circle left of a blue square and above a blue square and above a blue square",
        "a red circle left of a blue square\x00",
    ],
)
def test_no_caption(text: str) -> None:
    assert parse(text) is None
    assert not is_correct(text, PAIR)


@given(st.text())
def test_any_text_at_all(text: str) -> None:
    assert not is_correct(text, PAIR)


@given(st.lists(st.sampled_from(caption_words()), max_size=24), seeds)
def test_any_words_of_the_world(words: list[str], seed: int) -> None:
    scene, _ = scene_and_caption(seed)
    text = " ".join(words)
    meaning = parse(text)
    right = meaning is not None and len(meaning.mentions) == len(scene.shapes) and count_errors(meaning, scene) == 0
    assert is_correct(text, scene) is right


@given(seeds)
def test_paraphrases(seed: int) -> None:
    scene, _ = scene_and_caption(seed)
    texts = [caption.text for caption in paraphrases(scene, random.Random(seed), 5)]
    assert len(set(texts)) == 5
    assert all(is_correct(text, scene) for text in texts)
