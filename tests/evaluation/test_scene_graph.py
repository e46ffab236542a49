"""The scene-graph F-score: facts of sentences, synonyms, F-scores by hand."""

from __future__ import annotations

import sys

import pytest
from captions_tools import needs_spacy

from cwdpo.evaluation.java import Unavailable
from cwdpo.evaluation.scene_graph import Fact, SceneGraphs, f_score
from cwdpo.evaluation.wordnet import same_meaning


def test_synonyms() -> None:
    assert same_meaning("couch", "sofa") and same_meaning("bike", "bicycle") and same_meaning("xyzzy", "xyzzy")
    assert not same_meaning("dog", "cat") and not same_meaning("man", "dog") and not same_meaning("xyzzy", "dog")


def test_f_scores_by_hand() -> None:
    said: list[Fact] = [("dog",), ("dog", "brown"), ("sofa",)]
    # All of 3 are in gold; of gold's 4 different ones (couch and sofa are one) 3 are said: 2·1·¾/(1+¾) = 6/7.
    gold: list[Fact] = [("dog",), ("dog", "brown"), ("couch",), ("sofa",), ("dog", "on", "sofa")]
    assert f_score(said, gold) == pytest.approx(6 / 7)
    assert f_score([("dog",), ("cat",)], [("dog",)]) == pytest.approx(2 * 0.5 / 1.5)
    assert f_score(gold, gold) == 1.0
    assert f_score([("dog", "on", "sofa")], [("sofa", "on", "dog")]) == 0.0
    assert f_score([], gold) == f_score(said, []) == 0.0


SENTENCES: dict[str, set[Fact]] = {
    "a brown dog runs on the grass": {
        ("dog",), ("grass",), ("dog", "brown"), ("dog", "run"), ("dog", "on", "grass"),
    },
    "two men in red shirts are holding a sign": {
        ("man",), ("shirt",), ("sign",), ("man", "two"), ("shirt", "red"), ("man", "hold"),
        ("man", "in", "shirt"), ("man", "hold", "sign"),
    },
    "a cake is being cut by a woman": {("cake",), ("woman",), ("cake", "cut"), ("woman", "cut", "cake")},
    "a man stands in front of a white building": {
        ("man",), ("building",), ("building", "white"), ("man", "stand"), ("man", "in front of", "building"),
    },
    "a girl stands next to a bicycle that is blue": {
        ("girl",), ("bicycle",), ("bicycle", "blue"), ("girl", "stand"), ("girl", "next", "bicycle"),
    },
    "a man and a dog sit on a bench": {
        ("man",), ("dog",), ("bench",), ("man", "sit"), ("dog", "sit"), ("man", "on", "bench"), ("dog", "on", "bench"),
    },
    "": set(),
}  # fmt: skip


def test_what_sentences_say() -> None:
    needs_spacy()
    read = SceneGraphs().read(SENTENCES)
    assert {text: set(facts) for text, facts in read.items()} == SENTENCES


def test_scores_of_captions() -> None:
    needs_spacy()
    graphs = SceneGraphs()
    gold = [["a brown dog runs on the grass", "a dog on a lawn"], ["a man sits on a couch"]]
    same, none = graphs.f_scores(["a brown dog runs on the grass", "two cats sleep"], gold)
    assert 0.8 < same <= 1 and none == 0.0
    assert graphs.f_scores(["a man sits on a sofa"], gold[1:]) == [1.0]


def test_without_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(Unavailable, match=r"pip install 'cwdpo\[captions\]'"):
        SceneGraphs()
