"""Measures of captions: against pycocoevalcap's own figures, by hand, and what is said where one cannot be had."""

from __future__ import annotations

import gc
import json
import math
import os
from pathlib import Path

import pytest
from captions_tools import GOLD, GOLDEN, TOKENS, fake_java, needs_java

from cwdpo.evaluation.caption_metrics import METRICS, CaptionScorer
from cwdpo.evaluation.intervals import bootstrap_mean
from cwdpo.evaluation.java import Unavailable, find_java, java_first
from cwdpo.evaluation.tokenize_captions import tokenize

VALUES = GOLDEN["values"]


def test_as_pycocoevalcap_says() -> None:
    scorer = CaptionScorer()
    bleu = scorer.measure("bleu", TOKENS, GOLD)
    assert [bleu[f"bleu_{n}"].value for n in (1, 2, 3, 4)] == pytest.approx([100 * v for v in VALUES["bleu"]], abs=1e-6)
    for name in ("rouge_l", "cider"):
        score = scorer.measure(name, TOKENS, GOLD)[name]
        assert score.value == pytest.approx(100 * VALUES[name], abs=1e-6)
        assert score.each == pytest.approx([100 * v for v in VALUES[f"{name}_each"]], abs=1e-6)


def test_tokens_and_meteor_as_pycocoevalcap_says() -> None:
    needs_java()
    rows = GOLDEN["rows"]
    assert tokenize([row["caption"] for row in rows], "ptb") == TOKENS
    assert [tokenize(row["references"], "ptb") for row in rows] == GOLD
    assert CaptionScorer().measure("meteor", TOKENS, GOLD)["meteor"].value == pytest.approx(
        100 * VALUES["meteor"], abs=1e-6
    )


def test_empty_captions_keep_their_place() -> None:
    texts = ["", "A dog.", " \n ", "? !", "a\u2028b\u0085c", "x"]
    assert tokenize(texts, "words") == ["", "a dog", "", "", "a b c", "x"]
    scorer, gold = CaptionScorer(), [["a dog"], ["a dog"]]
    for metric in ("bleu", "rouge_l", "cider", "distinct", "length"):
        assert all(math.isfinite(s.value) for s in scorer.measure(metric, ["", "a dog"], gold).values())
    needs_java()
    assert tokenize(texts, "ptb") == ["", "a dog", "", "", "a b c", "x"]
    assert scorer.measure("meteor", ["", "a dog"], gold)["meteor"].value > 0


def test_distinct_and_length_by_hand() -> None:
    # Tokens a dog a cat, a dog: 3 different of 6; pairs (a dog) (dog a) (a cat), (a dog): 3 different of 4.
    captions = ["a dog a cat", "a dog"]
    scorer = CaptionScorer()
    found = scorer.measure("distinct", captions, [["x"], ["x"]])
    assert (found["distinct_1"].value, found["distinct_2"].value) == (50.0, 75.0)
    assert scorer.measure("length", captions, [["x"], ["x"]])["length"].value == 3.0
    assert scorer.measure("distinct", ["one"], [["x"]])["distinct_2"].value == 0.0


def test_intervals() -> None:
    assert bootstrap_mean([3.0] * 5) == (3.0, 3.0)
    # 400 zeros and 400 ones: the mean's standard error is .5/√800 = .01768, the interval .5 ± 1.96 of it.
    low, high = bootstrap_mean([0.0, 1.0] * 400)
    assert (low, high) == pytest.approx((0.4654, 0.5346), abs=0.004)
    assert bootstrap_mean([0.0, 1.0] * 400) == (low, high)
    for score in CaptionScorer().measure("bleu", TOKENS, GOLD).values():
        assert score.interval is not None and score.interval[0] <= score.value <= score.interval[1]
    same = CaptionScorer().measure("bleu", ["a b c d e"] * 3, [["a b c d e"]] * 3)["bleu_4"]
    assert (same.value, same.interval) == (pytest.approx(100), (pytest.approx(100), pytest.approx(100)))


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
    for metric in ("meteor",):
        with pytest.raises(Unavailable, match="no Java was found"):
            CaptionScorer().measure(metric, TOKENS, GOLD)
    with pytest.raises(Unavailable, match="no Java was found"):
        tokenize(["a"], "ptb")


@pytest.mark.timeout(60)  # a lock that METEOR's wrapper leaves held would wait for ever
def test_meteor_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lines in (("ends", ["exit 1"]), ("babbles", ["while read line; do echo no number; done"])):
        fake_java(tmp_path / name, monkeypatch, "17", lines)
        with pytest.raises(Unavailable, match="METEOR's Java ended or failed"):
            CaptionScorer().measure("meteor", TOKENS, GOLD)
        gc.collect()


def spice_jars(folder: Path) -> Path:
    for part in ("", "-models"):
        (folder / f"stanford-corenlp-3.6.0{part}.jar").touch()
    return folder


def test_spice_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=r"has no stanford-corenlp-3\.6\.0\.jar and no .*--spice-jars"):
        CaptionScorer(spice_jars=tmp_path).measure("spice", TOKENS, GOLD)
    fake_java(tmp_path / "17", monkeypatch, "17.0.1")
    with pytest.raises(Unavailable, match=r"Java 8 to 14, .* is 17; set JAVA_HOME"):
        CaptionScorer(spice_jars=spice_jars(tmp_path)).measure("spice", TOKENS, GOLD)
    fake_java(tmp_path / "11", monkeypatch, "11.0.2", ["echo no memory >&2", "exit 3"])
    with pytest.raises(Unavailable, match="Java ended with code 3: no memory"):
        CaptionScorer(spice_jars=tmp_path).measure("spice", TOKENS, GOLD)


def test_spice_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended Java writes scores of its own: what is asked, and how the answers are read, is seen."""
    scores = [{"image_id": i, "scores": {"All": {"f": f}}} for i, f in ((1, 0.25), (0, 0.5))]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    copy = [f'echo "$@" > {tmp_path}/arguments', f"for a; do case $a in *captions.json) cp $a {tmp_path}/asked;; esac"]
    copy += [f"case $a in *scores.json) cp {tmp_path}/scores.json $a;; esac; done"]
    fake_java(tmp_path / "8", monkeypatch, "1.8.0_1", copy)
    found = CaptionScorer(spice_jars=spice_jars(tmp_path)).measure("spice", ["a", "b"], [["c"], ["d", "e"]])["spice"]
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
    scorer = CaptionScorer()
    found = {
        n: s.value
        for m in ("bleu", "meteor", "rouge_l", "cider")
        for n, s in scorer.measure(m, captions, whole).items()
    }
    published = {
        "bleu_1": 57.9,
        "bleu_2": 40.4,
        "bleu_3": 27.9,
        "bleu_4": 19.1,
        "meteor": 19.5,
        "rouge_l": 39.6,
        "cider": 60.0,
    }
    assert {name: round(value, 1) for name, value in found.items()} == published
    exact = {
        "bleu_1": 57.94,
        "bleu_2": 40.44,
        "bleu_3": 27.85,
        "bleu_4": 19.08,
        "meteor": 19.53,
        "rouge_l": 39.63,
        "cider": 59.98,
    }
    assert {name: round(value, 2) for name, value in found.items()} == exact


def test_every_measure_is_described() -> None:
    assert list(METRICS) == ["bleu", "meteor", "rouge_l", "cider", "spice", "scene_graph_f", "distinct", "length"]
