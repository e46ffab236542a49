"""What the evaluation says of a run: the summary's figures and a row per prompt, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.evaluation.metrics import METRICS
from cwdpo.run.evaluate_run import summarise, with_wrong_images


def group(name: str, image: str | None, *references: str, chosen: str = "a b c d e") -> PromptGroup:
    images = (ImageRef(path=image),) if image is not None else ()
    answers = (Response(chosen), Response("z", "rejected"))
    return PromptGroup(name, images, (user_message("?", len(images)),), answers, references, origin=name)


def reading(*logps: float) -> dict[str, Any]:
    kinds = {"chosen": {"logp_mean": -0.5, "cooling_weight": 0.9}, "rejected": {"logp_mean": -2, "cooling_weight": 0.7}}
    rows = [{"id": i, "chosen": value, "rejected": -2.0} for i, value in enumerate(logps)]
    return {"kinds": kinds, "ece": 0.1, "entropy": 1.0, "top1": 0.5, "reliability": [], "prompts": rows}


def test_summarise(tmp_path: Path) -> None:
    groups = [
        group("one", str(tmp_path / "data" / "a.png"), "x y z w"),
        group("two", "/elsewhere/b.png"),
        group("three", None, "k l m n"),
    ]
    captions = {"before": ["x y z w", "nothing", "q"], "after": ["q", "a b c d e", "k l m n"]}
    readings = {"before": reading(-1, -2, -3), "after": reading(-4, -5, -6) | {"tv": 0.2, "js": 0.01}}
    summary, rows = summarise(groups, captions, readings, METRICS.make(["cider", "length"], "test"), folder=tmp_path)
    assert summary["prompts"] == 3
    # A caption equal to its only reference, of four words or more, has 1000; the others share nothing with theirs.
    assert summary["before"]["cider"] == pytest.approx(1000 / 3)
    assert summary["after"]["cider"] == pytest.approx(2000 / 3)
    # Words: 4, 1, 1 before and 1, 5, 4 after. Of figures without a place in every table the summary has the words.
    assert (summary["before"]["length"], summary["after"]["length"]) == (2, pytest.approx(10 / 3))
    assert [figure["name"] for figure in summary["figures"]] == ["length"] and summary["tokenizer"] == "words"
    assert summary["after"]["tv"] == 0.2 and "tv" not in summary["before"]
    assert summary["before"]["logp"] == {"chosen": -0.5, "rejected": -2}
    assert "correct" not in summary["before"]  # only scenes know what is right
    assert [row["id"] for row in rows] == ["one", "two", "three"]
    assert [row["image"] for row in rows] == ["data/a.png", "/elsewhere/b.png", None]
    assert [row["references"] for row in rows] == [["x y z w"], ["a b c d e"], ["k l m n"]]
    assert rows[0]["before"]["caption"] == "x y z w" and rows[0]["before"]["cider"] == pytest.approx(1000)
    assert [row["after"]["logp"] for row in rows] == [{"chosen": float(v), "rejected": -2.0} for v in (-4, -5, -6)]


def test_summarise_without_a_run_directory_keeps_paths() -> None:
    _, rows = summarise([group("one", "/r/data/a.png")], {}, {}, [])
    assert rows[0]["image"] == "/r/data/a.png"


def test_wrong_images() -> None:
    groups = [group("one", "a.png"), group("text", None), group("two", "b.png"), group("three", "c.png")]
    wrong = with_wrong_images(groups)
    assert [(g.id, g.images[0].path) for g in wrong] == [("one", "b.png"), ("two", "c.png"), ("three", "a.png")]
    assert all([r.role for r in g.responses] == ["chosen"] for g in wrong)
    assert with_wrong_images(groups[:2]) == []
