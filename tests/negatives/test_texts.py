"""Words, distances, the lexicon and what `perturb` and `shuffle` make of a caption."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from built_negatives import propose
from cwdpo.data.schema import PromptGroup, Response
from cwdpo.negatives.lexicon import default_lexicon
from cwdpo.negatives.source import Candidate
from cwdpo.negatives.sources.perturb import caption_of, change, slots
from cwdpo.negatives.sources.shuffle import shuffled
from cwdpo.negatives.text import edit_distance, normalise, rouge_l, word_diff
from cwdpo.scenes.grammar import count_errors, is_correct, paraphrases, parse
from cwdpo.scenes.scene_rows import sample_scenes

LEXICON = default_lexicon()


def perturbed(row: PromptGroup, count: int, *difficulties: str) -> list[Candidate]:
    return propose("perturb", [row], count, Path(), {"perturb_difficulty": difficulties})[row.id]


def group(text: str, *references: str, **facts: object) -> PromptGroup:
    return PromptGroup("row", (), (), (Response(text),), references, facts=facts)


def wrong(text: str, word: str, to: str) -> str:
    """`text` with the fact at `word` changed to `to`."""
    place = next(s for s in slots(text, [text], LEXICON) if text[s.start : s.end].lower() == word)
    assert to in place.options, place.options
    only = type(place)(place.kind, place.start, place.end, (to,))
    return change(text, [only], random.Random(0))


def test_distances_by_hand():
    # a b c d -> a x c: one substitution, one deletion
    assert edit_distance("abcd", "axc") == 2
    assert edit_distance("", "abc") == 3
    # longest common subsequence of (a b c d) and (a c d e f) is (a c d): F1 = 2 * 3 / (4 + 5)
    assert rouge_l(list("abcd"), list("acdef")) == pytest.approx(6 / 9)
    assert rouge_l([], ["a"]) == 0


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_distances_are_symmetric_and_bounded(one: list[str], other: list[str]):
    assert edit_distance(one, other) == edit_distance(other, one)
    assert (edit_distance(one, other) == 0) == (one == other)
    assert abs(len(one) - len(other)) <= edit_distance(one, other) <= max(len(one), len(other))
    assert rouge_l(one, other) == pytest.approx(rouge_l(other, one))
    assert 0 <= rouge_l(one, other) <= 1
    assert not one or rouge_l(one, one) == 1


def test_word_diff():
    found = word_diff("A red dog runs .", "A blue dog runs fast .")
    assert found == [
        ("same", "A"),
        ("gone", "red"),
        ("new", "blue"),
        ("same", "dog runs"),
        ("new", "fast"),
        ("same", "."),
    ]
    # a stop that is gone is no word; one word in common of 5 and 3 makes another sentence
    assert word_diff("A red dog runs .", "A red dog runs") == [("same", "A red dog runs")]
    assert word_diff("A red dog runs .", "The sea dog") == [("new", "The sea dog")]


def test_every_phrase_can_be_perturbed():
    """Also `onto`, whose opposite is `off`: a word that YAML 1.1 reads as false."""
    for phrase in LEXICON.phrases():
        row = group(f"A brown dog and two men {phrase} the red ball .")
        texts = [candidate.text for candidate in perturbed(row, 4, "hard", "easy")]
        assert texts and row.chosen.text not in texts, phrase


@pytest.mark.parametrize(
    ("text", "word", "to", "expected"),
    [
        ("A green car .", "green", "orange", "An orange car ."),
        ("An elephant drinks .", "elephant", "zebra", "A zebra drinks ."),
        ("Two men sit down", "men", "women", "Two women sit down"),
        ("Two men sit down", "two", "five", "Five men sit down"),
        ("Two men sit down", "sit", "stand", "Two men stand down"),
        ("a man is sitting", "sitting", "kneeling", "a man is kneeling"),
        ("a man sits", "sits", "crouches", "a man crouches"),
        ("a cat behind a sofa", "behind", "in front of", "a cat in front of a sofa"),
        ("a MAN", "man", "woman", "a WOMAN"),
        ("two babies", "babies", "boys", "two boys"),
        ("a bus", "bus", "airplane", "an airplane"),
        ("a knife on a bench", "bench", "shelf", "a knife on a shelf"),
        ("three knives", "knives", "forks", "three forks"),
    ],
)
def test_a_fact_is_changed_in_its_form(text: str, word: str, to: str, expected: str):
    assert wrong(text, word, to) == expected


def found_words(text: str) -> list[str]:
    return [text[f.start : f.end] for f in LEXICON.find(text, strict=True)]


def test_what_only_looks_like_a_fact_is_left_alone():
    assert "sticks" not in found_words("a boy sticks his tongue out")  # no toy
    assert "lays" not in found_words("a dog lays its head down")  # nothing else fits an object
    assert "rock" not in found_words("people in a rock dome")  # first of two nouns
    assert "little" not in found_words("a little girl")  # age, not size
    assert "orange" not in found_words("she eats an orange")  # fruit
    assert "swings" not in found_words("children on the swings")
    assert found_words("a black and white dog") == ["black and white", "dog"]  # not to be changed by itself
    assert slots("a black and white dog", [], LEXICON)[0].kind == "object"


def test_what_a_gold_response_says_is_not_put_in():
    golds = ["a dog on the grass", "a cat or a horse on the lawn"]
    place = next(s for s in slots(golds[0], golds, LEXICON) if s.kind == "object")
    assert "cat" not in place.options and "horse" not in place.options and "cow" in place.options


def test_concepts_by_hand():
    assert LEXICON.concepts("A red car and a guy near the tower") == {
        "colour:red", "object:car", "colour:red object:car", "object:man", "tower", "relation:next to",
    }  # fmt: skip
    said = {"object:circle", "object:square", "object:circle above object:square"}
    assert LEXICON.concepts("a circle over a square") == said
    assert LEXICON.concepts("the square below the disc") == said  # the same from the other side
    assert LEXICON.concepts("a square over a circle") == {
        "object:circle", "object:square", "object:square above object:circle",
    }  # fmt: skip
    three = LEXICON.concepts("a cat next to a dog and behind a car")
    assert {"object:cat next to object:dog", "object:car in front of object:cat"} <= three


@given(st.text(max_size=80), st.integers(0, 5))
def test_perturb_and_shuffle_never_fail(text: str, seed: int):
    rng = random.Random(seed)
    places = slots(text, [text], LEXICON)
    if places:
        assert normalise(change(text, places, rng)) != normalise(text)
    other = shuffled(text, rng)
    assert other is None or not text.isascii() or sorted(normalise(other).split()) == sorted(normalise(text).split())


def test_difficulty_is_the_number_of_facts():
    text = "A man in a red shirt rides a brown horse in front of two trees"
    for name, facts in (("hard", 1), ("medium", 2)):
        for candidate in perturbed(group(text), 4, name):
            assert candidate.difficulty == name and len(candidate.changed) == facts
            new = sum(kind == "new" for kind, _ in word_diff(text, candidate.text))
            assert 1 <= new <= 2 * facts  # a/an may change beside it
    easy = perturbed(group(text), 1, "easy")[0]
    assert easy.difficulty == "easy" and len(easy.changed) >= 6
    assert perturbed(group("hmm"), 1, "hard") == []
    kinds = {c.changed[0] for c in perturbed(group(text), 10, "hard")}
    assert len(kinds) >= 3  # the kind is drawn first: objects do not crowd out


def test_perturb_is_exact_on_scenes():
    rng = random.Random(0)
    scenes = sample_scenes("train", 3)
    for _ in range(30):
        scene = next(scenes)
        gold = paraphrases(scene, rng, 1)[0]
        assert caption_of(gold.text) == gold
        row = group(gold.text, scene=scene.to_json())
        for difficulty, errors in (("hard", 1), ("medium", 2)):
            for candidate in perturbed(row, 2, difficulty):
                meaning = parse(candidate.text)
                assert meaning is not None and count_errors(meaning, scene) == errors
                assert not is_correct(candidate.text, scene)
