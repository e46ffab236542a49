"""Measures of captions: against pycocoevalcap's own figures, by hand, and what is said where one cannot be had."""

from __future__ import annotations

import gc
import json
import math
import os
from pathlib import Path

import pytest
from captions_tools import GOLD, GOLDEN, TOKENS, fake_java, measured, needs_java

from cwdpo.data.schema import PromptGroup
from cwdpo.errors import RecipeError
from cwdpo.evaluation.java import find_java, java_first
from cwdpo.evaluation.metrics import METRICS, Captioned, Unavailable
from cwdpo.evaluation.metrics.cider import cider
from cwdpo.evaluation.tokenize_captions import tokenize

VALUES = GOLDEN["values"]


def test_as_pycocoevalcap_says() -> None:
    bleu = measured("bleu", TOKENS, GOLD)
    assert [bleu[f"bleu_{n}"].value for n in (1, 2, 3, 4)] == pytest.approx([100 * v for v in VALUES["bleu"]], abs=1e-6)
    for name in ("rouge_l", "cider"):
        score = measured(name, TOKENS, GOLD)[name]
        assert score.value == pytest.approx(100 * VALUES[name], abs=1e-6)
        assert score.each == pytest.approx([100 * v for v in VALUES[f"{name}_each"]], abs=1e-6)
    for score in bleu.values():
        assert score.interval is not None and score.interval[0] <= score.value <= score.interval[1]
    same = measured("bleu", ["a b c d e"] * 3, [["a b c d e"]] * 3)["bleu_4"]
    assert same.value == pytest.approx(100) and same.interval is None


def test_tokens_and_meteor_as_pycocoevalcap_says() -> None:
    needs_java()
    rows = GOLDEN["rows"]
    assert tokenize([row["caption"] for row in rows], "ptb") == TOKENS
    assert [tokenize(row["references"], "ptb") for row in rows] == GOLD
    assert measured("meteor", TOKENS, GOLD)["meteor"].value == pytest.approx(100 * VALUES["meteor"], abs=1e-6)


def test_empty_captions_keep_their_place() -> None:
    texts = ["", "A dog.", " \n ", "? !", "a\u2028b\u0085c", "x"]
    assert tokenize(texts, "words") == ["", "a dog", "", "", "a b c", "x"]
    gold = [["a dog"], ["a dog"]]
    for metric in ("bleu", "rouge_l", "cider", "distinct", "length"):
        assert all(math.isfinite(s.value) for s in measured(metric, ["", "a dog"], gold).values())
    needs_java()
    assert tokenize(texts, "ptb") == ["", "a dog", "", "", "a b c", "x"]
    assert measured("meteor", ["", "a dog"], gold)["meteor"].value > 0


def test_cider_by_hand() -> None:
    """Four n-gram orders count a quarter each. Equal texts of five words: cosine 1 in all of them, times 10, times 100.

    Two words have no 3- and 4-grams, so half of that; three words three quarters; no word in common 0.
    """
    one, each = cider(["A b c d e.", "x y", "q"], [["a b c d e"], ["x y"], ["r s t u"]])
    assert each == pytest.approx([1000, 500, 0]) and one == pytest.approx(500)
    assert cider(["", "!!!", "犬 が 走る"], [["a dog"], ["a cat"], ["犬 が 走る"]])[1] == pytest.approx([0, 0, 750])
    for captions, references in (([], []), (["a"], [[]])):
        with pytest.raises(ValueError, match="at least one picture"):
            cider(captions, references)


def test_distinct_and_length_by_hand() -> None:
    """Tokens a dog a cat, a dog: 3 different of 6; pairs (a dog) (dog a) (a cat), (a dog): 3 different of 4."""
    captions = ["a dog a cat", "a dog"]
    distinct = measured("distinct", captions, [["x"], ["x"]], longest=3)
    assert [distinct[f"distinct_{n}"].value for n in (1, 2, 3)] == [50.0, 75.0, 100.0]
    assert measured("length", captions, [["x"], ["x"]])["length"].value == 3.0
    assert measured("distinct", ["one"], [["x"]])["distinct_2"].value == 0.0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return [1.0]", "(1,) numbers for 2 pictures"),
        ("return captions[5]", "yours.py:2: IndexError"),
        ("return 'good'", "could not convert string"),
    ],
)
def test_a_metric_of_yours_that_fails(body: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "yours.py").write_text(f"def mine(captions, references):\n    {body}\n", encoding="utf-8")
    (metric,) = METRICS.make([f"{tmp_path}/yours.py:mine"], "--metrics")
    with pytest.raises(RecipeError, match=r"metric mine: failed at .*must return a number") as error:
        metric.scores(Captioned([], ["a", "b"], ["a", "b"], [["a"], ["b"]]))
    assert told in str(error.value)


def test_what_is_unknown_or_does_not_apply() -> None:
    for asked, told in (("spise", "did you mean spice"), ({"distinct": {"n": 2}}, "its settings: longest")):
        with pytest.raises(RecipeError, match=f"--metrics: .*{told}"):
            METRICS.make([asked], "--metrics")
    with pytest.raises(Unavailable, match="scenes"):
        METRICS.find("correct")().scores(Captioned([PromptGroup("a", (), (), ())], ["a"], ["a"], [["a"]]))


def test_java_and_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, major in (("1.8.0_392", 8), ("11.0.2", 11), ("17", 17)):
        path = fake_java(tmp_path / version, monkeypatch, version)
        assert (find_java().path, find_java().version) == (str(path), major)
        with java_first():
            assert os.environ["PATH"].startswith(str(path.parent))
        assert not os.environ["PATH"].startswith(str(path.parent))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(Unavailable, match=r"no Java in JAVA_HOME = .*apt-get install openjdk"):
        find_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no Java was found"):
        measured("meteor", TOKENS, GOLD)
    with pytest.raises(Unavailable, match="no Java was found"):
        tokenize(["a"], "ptb")


@pytest.mark.timeout(60)  # a lock that METEOR's wrapper leaves held would wait for ever
def test_meteor_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lines in (("ends", ["exit 1"]), ("babbles", ["while read line; do echo no number; done"])):
        fake_java(tmp_path / name, monkeypatch, "17", lines)
        with pytest.raises(Unavailable, match="METEOR's Java ended or failed"):
            measured("meteor", TOKENS, GOLD)
        gc.collect()


def spice_jars(folder: Path) -> Path:
    for part in ("", "-models"):
        (folder / f"stanford-corenlp-3.6.0{part}.jar").touch()
    return folder


def test_spice_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=r"has no stanford-corenlp-3\.6\.0\.jar and no .*--spice-jars"):
        measured("spice", TOKENS, GOLD, jars=tmp_path)
    fake_java(tmp_path / "17", monkeypatch, "17.0.1")
    with pytest.raises(Unavailable, match=r"Java 8 to 14, .* is 17; set JAVA_HOME"):
        measured("spice", TOKENS, GOLD, jars=spice_jars(tmp_path))
    fake_java(tmp_path / "11", monkeypatch, "11.0.2", ["echo no memory >&2", "exit 3"])
    with pytest.raises(Unavailable, match="Java ended with code 3: no memory"):
        measured("spice", TOKENS, GOLD, jars=tmp_path)


def test_spice_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended Java writes scores of its own: what is asked, and how the answers are read, is seen."""
    scores = [{"image_id": i, "scores": {"All": {"f": f}}} for i, f in ((1, 0.25), (0, 0.5))]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    copy = [f'echo "$@" > {tmp_path}/arguments', f"for a; do case $a in *captions.json) cp $a {tmp_path}/asked;; esac"]
    copy += [f"case $a in *scores.json) cp {tmp_path}/scores.json $a;; esac; done"]
    fake_java(tmp_path / "8", monkeypatch, "1.8.0_1", copy)
    found = measured("spice", ["a", "b"], [["c"], ["d", "e"]], jars=spice_jars(tmp_path))["spice"]
    assert (found.value, found.each) == (37.5, (50.0, 25.0))
    assert json.loads((tmp_path / "asked").read_text())[1] == {"image_id": 1, "test": "b", "refs": ["d", "e"]}
    assert "edu.anu.spice.SpiceScorer" in (tmp_path / "arguments").read_text()


def test_the_captions_of_the_public_demo() -> None:
    """1,000 captions of the coco-caption demo; its published figures."""
    folder = os.environ.get("CWDPO_COCO_DEMO")
    if not folder:
        pytest.skip("set CWDPO_COCO_DEMO to the folder of captions_val2014_fakecap_results.json and its references")
    needs_java()
    answers = json.loads((Path(folder) / "captions_val2014_fakecap_results.json").read_text())
    notes = json.loads((Path(folder) / "captions_val2014_of_fakecap.json").read_text())["annotations"]
    gold: dict[int, list[str]] = {}
    for note in notes:
        gold.setdefault(note["image_id"], []).append(note["caption"])
    captions = tokenize([row["caption"] for row in answers], "ptb")
    references = [tokenize(gold[row["image_id"]], "ptb") for row in answers[:3]]
    flat = iter(tokenize([text for row in answers for text in gold[row["image_id"]]], "ptb"))
    whole = [[next(flat) for _ in gold[row["image_id"]]] for row in answers]
    assert whole[:3] == references  # in one call or in many
    metrics = ("bleu", "meteor", "rouge_l", "cider")
    found = {n: round(s.value, 2) for m in metrics for n, s in measured(m, captions, whole).items()}
    published = {"bleu_1": 57.94, "bleu_2": 40.44, "bleu_3": 27.85, "bleu_4": 19.08}
    assert found == published | {"meteor": 19.53, "rouge_l": 39.63, "cider": 59.98}
