"""CIDEr against pycocoevalcap used directly, and by hand; intervals by hand."""

from __future__ import annotations

import pytest
from pycocoevalcap.cider.cider import Cider

from cwdpo.data.words import words
from cwdpo.evaluation.cider import cider

REFERENCES = [
    ["A dog runs on the beach.", "The dog is running, fast!", "a brown dog at the sea"],
    ["Two cats sleep on a sofa", "cats on the couch"],
    ["A man's bicycle leans against a wall", "a bike by the wall", "red bicycle"],
    ["Three people eat pizza at a table"],
]
CAPTIONS = ["a dog on the beach", "two dogs sleep on a sofa", "A man's bicycle by the wall", "nobody"]


def test_words() -> None:
    assert words("A man's  bicycle, (red)!") == "a man's bicycle red"
    assert words("") == words("...") == ""
    assert words("Été à 3 €") == "été à 3"


def test_cider_is_pycocoevalcap_s() -> None:
    """Sentences put into words by hand, then the tool itself."""
    gold = {
        0: ["a dog runs on the beach", "the dog is running fast", "a brown dog at the sea"],
        1: ["two cats sleep on a sofa", "cats on the couch"],
        2: ["a man's bicycle leans against a wall", "a bike by the wall", "red bicycle"],
        3: ["three people eat pizza at a table"],
    }
    answers = {0: ["a dog on the beach"], 1: ["two dogs sleep on a sofa"], 2: ["a man's bicycle by the wall"]}
    score, each = Cider().compute_score(gold, answers | {3: ["nobody"]})
    mine, mine_each = cider(CAPTIONS, REFERENCES)
    assert mine == pytest.approx(100 * score, abs=1e-9)
    assert mine_each == pytest.approx([100 * s for s in each], abs=1e-9)
    assert mine_each[3] == 0 and mine == pytest.approx(sum(mine_each) / 4)


def test_cider_by_hand() -> None:
    # Four n-gram orders count a quarter each. Equal texts of five words: cosine 1 in all of them, times 10, times 100.
    # Two words: no 3- and 4-grams, so half of that. No word in common: 0.
    one, each = cider(["a b c d e", "x y", "q"], [["a b c d e"], ["x y"], ["r s t u"]])
    assert each == pytest.approx([1000, 500, 0])
    assert one == pytest.approx(500)


def test_cider_of_empty_captions_and_odd_texts() -> None:
    _, each = cider(["", "!!!", "犬 が 走る"], [["a dog"], ["a cat"], ["犬 が 走る"]])
    # Three words: orders 1 to 3 of 4.
    assert each == pytest.approx([0, 0, 750])


@pytest.mark.parametrize(("captions", "references"), [([], []), (["a"], [[]])])
def test_cider_needs_references(captions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        cider(captions, references)
