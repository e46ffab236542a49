"""Words, axes, drawings and thumbnails, each by itself."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
from pathlib import Path

import pytest
from made_up_runs import made_up_run
from PIL import Image

from cwdpo.report.bars import Bar, bar_chart
from cwdpo.report.page_blocks import Verdict
from cwdpo.report.pictures import Thumbnails, caption_gallery
from cwdpo.report.read_run import read_runs
from cwdpo.report.run_record import RunRecord
from cwdpo.report.svg import Box, Series, line_chart
from cwdpo.report.ticks import bounds, nice_ticks, signed, text_of, tick_text
from cwdpo.report.verdict import compare_runs, describe_run


def a_run(label: str, tv: float, ece: float, right: list[bool], gold: list[float] | None = None) -> RunRecord:
    """A run with only what a verdict reads."""
    run = RunRecord(Path(label), {"stage2": {"objective": label}}, label=label)
    after = {"tv": tv, "js": tv / 2, "ece": ece, "correct": sum(right) / len(right)}
    rows = [{"id": i, "before": {"correct": False}, "after": {"correct": r}} for i, r in enumerate(right)]
    if gold is not None:
        after["logp"] = {"chosen": sum(gold) / len(gold)}
        for row, value in zip(rows, gold, strict=True):
            row["after"]["logp"] = {"chosen": value}
    run.files["evaluation/summary.json"] = {"before": {"ece": 0.02, "correct": 0.0, "tv": None}, "after": after}
    run.files["evaluation/rows.jsonl"] = rows
    return run


def test_a_verdict_does_the_arithmetic() -> None:
    # Right: +1 for 6 of 8 pictures, −1 for none: (6 + 1)/10 − 1/10 = .6, ± 1.96 √((.8 − .36)/10) = .411, at most 1.
    # Gold: differences all .5 exactly: nothing is known of their spread.
    new = a_run("new", 0.05, 0.03, [True, True, True, False] * 2, [-0.5, -1.0, -1.5, -2.0] * 2)
    old = a_run("old", 0.20, 0.12, [False] * 8, [-1.0, -1.5, -2.0, -2.5] * 2)
    assert figures(compare_runs(new, old)) == {
        "Drift of the token distribution": (["0.050", "0.025", "0.200", "0.100", "4.0"], ""),
        "Calibration error (ECE)": (["0.030", "0.120", "0.020"], "good"),
        "Gold captions, log p per token": (["−1.250", "−1.750", "+0.500"], "good"),
        "Captions wholly right": (["75.0", "0.0", "+75.0", "18.9", "100.0", "0.0"], "good"),
    }


def figures(verdict: Verdict | None) -> dict[str, tuple[list[str], str]]:
    """The numbers with decimals of every statement, and its sign."""
    assert verdict is not None
    return {s.measure: (re.findall(r"[+−]?\d+\.\d+", s.text), s.sign) for s in verdict.statements}


def test_equal_rows_are_called_the_same() -> None:
    found = compare_runs(a_run("new", 0.05, 0.1, [True, False]), a_run("old", 0.1, 0.1, [True, False]))
    assert figures(found)["Captions wholly right"] == (["50.0", "50.0", "0.0"], "open")
    assert found is not None and any(c.startswith("2 pictures") for c in found.caveats)


def test_different_pictures_and_starts_are_said() -> None:
    new, old = a_run("new", 0.05, 0.2, [True, False]), a_run("old", 0.1, 0.1, [True, False])
    for row in new.evaluated:
        row["id"] = f"other {row['id']}"
    new.recipe = {"stage2": {"objective": "new", "learning_rate": 2}}
    found = compare_runs(new, old)
    assert found is not None
    assert len(found.caveats) == 3 and any("stage2.learning_rate" in c for c in found.caveats)
    assert all("interval [" not in s.text for s in found.statements)


def test_one_run_is_set_against_its_own_start() -> None:
    found = describe_run(a_run("new", 0.05, 0.03, [True, True, False, True] * 2))
    # Against all wrong: differences 1, 1, 0, 1, twice, as above.
    assert figures(found)["Captions wholly right"] == (["75.0", "0.0", "+75.0", "18.9", "100.0"], "good")


def test_every_stage_against_the_one_before_it() -> None:
    """Stage 1 got 6 of 8 right where the base had none; Stage 2 lost them again: said plainly, whatever the order."""
    run = a_run("new", 0.05, 0.02, [False] * 8)
    run.files["evaluation/summary.json"]["base"] = {"correct": 0.0}
    run.files["evaluation/summary.json"]["before"]["correct"] = 0.75
    for i, row in enumerate(run.files["evaluation/rows.jsonl"]):
        row |= {"base": {"correct": False}, "before": {"correct": i < 6}}
    found = describe_run(run)
    assert found is not None
    assert figures(found)["Stage 1: Captions wholly right"][1] == "good"
    assert figures(found)["Captions wholly right"][1] == "bad"
    assert "Stage 2 made it worse" in found.sentence and "Stage 1 made" not in found.sentence
    for row in run.files["evaluation/rows.jsonl"]:
        row["after"] = row["before"]
    run.files["evaluation/summary.json"]["after"]["correct"] = 0.75
    found = describe_run(run)
    assert found is not None and "Stage 2 made no difference" in found.sentence


def test_a_model_that_does_not_look_is_called_out_first() -> None:
    """An interval of the gap that holds 0, or one caption for most pictures."""
    run = a_run("new", 0.05, 0.02, [True] * 12)
    rows, after = run.files["evaluation/rows.jsonl"], run.files["evaluation/summary.json"]["after"]
    for gap, captions, blind in (
        ((0.5, 0.2, 0.8), [f"a {i}" for i in range(12)], False),
        ((0.1, -0.2, 0.4), [f"a {i}" for i in range(12)], True),
        ((0.5, 0.2, 0.8), ["a cat"] * 7 + [f"a {i}" for i in range(5)], True),
        ((0.5, 0.2, 0.8), ["a cat"] * 6 + [f"a {i}" for i in range(6)], False),
    ):
        after["grounding"] = dict(zip(("gap", "low", "high"), gap, strict=True))
        for row, caption in zip(rows, captions, strict=True):
            row["after"]["caption"] = caption
        found = describe_run(run)
        assert found is not None
        assert found.sentence.startswith("new does not show that it looks") is blind


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (-3.4, 0.2, [-3, -2, -1, 0]),
        (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (0.12, 0.13, [0.12, 0.122, 0.124, 0.126, 0.128, 0.13]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_updates_are_whole() -> None:
    assert nice_ticks(0, 12, 5) == [0, 2.5, 5, 7.5, 10]
    assert nice_ticks(0, 12, 5, whole=True) == [0, 5, 10]
    assert nice_ticks(0, 2, 5, whole=True) == [0, 1, 2]
    assert nice_ticks(0, 100, 4, whole=True) == [0, 25, 50, 75, 100]


def test_numbers_are_written_for_readers() -> None:
    assert [tick_text(t, [0, 0.025, 0.05]) for t in (0, 0.025)] == ["0.000", "0.025"]
    assert tick_text(-20000, [-20000, 0]) == "−20 000"
    assert text_of(-0.5344) == "−0.534"
    assert text_of(0.00001) == "1.0e−05"
    assert text_of(None) == "–"
    assert (signed(0.5, 1), signed(-0.5, 1), signed(0.0, 1)) == ("+0.5", "−0.5", "0.0")
    assert bounds([]) is None
    assert bounds([0.0, 1.0], include=[0.0]) == (0.0, 1.06)
    assert bounds([2.0]) == (1.9, 2.1)


def test_a_line_is_where_its_values_are() -> None:
    # Plot from x = 10 to 110 and from y = 100 up to 0: (0, 0) is bottom left, (10, 1) is top right, (5, .25) between.
    box = Box(width=120, height=110, left=10, right=10, top=0, bottom=10)
    drawn = line_chart(
        [Series("a<b", [(0, 0), (5, 0.25), (10, 1)], "k-easy")],
        title="t&t",
        description="d",
        y_range=(0, 1),
        reference=0.5,
        box=box,
    )
    assert '<g class="line k-easy"><path d="M10.0 100.0 L60.0 75.0 L110.0 0.0"/>' in drawn
    assert '<line x1="10" y1="50.0" x2="110" y2="50.0" class="ref"/>' in drawn
    assert "<title>t&amp;t</title>" in drawn and ">a&lt;b</text>" in drawn


def test_a_long_series_is_thinned_and_keeps_its_end() -> None:
    drawn = line_chart([Series("a", [(i, i) for i in range(5000)], "r-0")], title="t", description="d")
    points = drawn.split('<path d="')[1].split('"')[0].split("L")
    assert 200 < len(points) <= 402
    assert points[-1].split() == ["358.0", drawn.split('class="end"')[1].split('cy="')[1].split('"')[0]]


def test_bars_are_as_long_as_their_values() -> None:
    drawn = bar_chart([Bar("a", 0.2, "r-0"), Bar("b", 0.05, "r-1", 0.1)], title="t", description="d", width=204)
    assert 'width="200.0" height="14"' in drawn and 'width="50.0" height="14"' in drawn  # 204 − 4 units are 0.2
    assert '<path d="M100.0 57V75"/>' in drawn
    assert '>a<tspan class="value" dx="8">0.200</tspan>' in drawn and ">0.100 → 0.050</tspan>" in drawn


def test_a_run_that_starts_from_another_runs_stage_is_called_so(tmp_path: Path) -> None:
    first = made_up_run(tmp_path / "first", "dpo", prompts=2, name="SFT → DPO")
    second = made_up_run(tmp_path / "second", "dpo", prompts=2, name="other")
    recipe = (second / "recipe.yaml").read_text(encoding="utf-8")
    (second / "recipe.yaml").write_text(recipe.replace("enabled: true", "enabled: false", 1), encoding="utf-8")
    shutil.rmtree(second / "stage1")
    runs = read_runs([first, second])
    assert [(r.label, r.method, r.origin) for r in runs] == [("SFT → DPO", "SFT → DPO", "SFT"), ("other", "DPO", "SFT")]
    (remarks,) = (c.remarks for c in caption_gallery(runs).cards[:1])  # type: ignore[attr-defined]
    assert [r.who for r in remarks].count("base model") == 1
    (alone,) = read_runs([second])
    assert (alone.label, alone.origin) == ("other", "base model")


def thumbnail(run: Path, path: object, digest: object = None) -> tuple[str, bool]:
    return Thumbnails()(run, path, digest)


def decoded(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))


def test_thumbnails_are_small(tmp_path: Path) -> None:
    Image.effect_noise((1600, 800), 60).save(tmp_path / "big.png")
    source, pixelated = thumbnail(tmp_path, str(tmp_path / "big.png"))
    assert source.startswith("data:image/jpeg;base64,") and len(source) < 40_000 and not pixelated
    assert decoded(source).size == (224, 112)
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "small.png")
    source, pixelated = thumbnail(tmp_path, "small.png")
    assert source.startswith("data:image/png;base64,") and pixelated and decoded(source).size == (64, 64)


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    Image.new("RGB", (200, 200)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("text.png", "cut.png", "pipe.png", "none.png", "", None, 3, ["a"], "a\0b", "x" * 5000, str(tmp_path)):
        assert thumbnail(tmp_path, path) == ("", False)
    Image.new("1", (8001, 8000)).save(tmp_path / "huge.png")  # 64,008,000 pixels
    assert thumbnail(tmp_path, "huge.png") == ("", False)


def test_a_picture_elsewhere_is_shown_where_its_content_is_what_the_run_recorded(tmp_path: Path) -> None:
    """A stranger's run that names a file of this machine, by path or by a link, does not get it into the page."""
    run, mine = tmp_path / "run", tmp_path / "mine.png"
    run.mkdir()
    Image.new("RGB", (8, 8), "red").save(mine)
    (run / "link.png").symlink_to(mine)
    (run / "own.png").write_bytes(mine.read_bytes())
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    for path in (str(mine), "link.png", "../mine.png"):
        assert thumbnail(run, path) == ("", False), path
        assert thumbnail(run, path, "0" * 64) == ("", False), path
        assert thumbnail(run, path, digest)[0], path
    assert thumbnail(run, "own.png")[0]
    assert thumbnail(run, "own.png", "0" * 64) == ("", False)  # replaced since the run saw it


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\nshowpage\n%%EOF\n"
    )
    monkeypatch.setattr("subprocess.Popen", None)
    assert thumbnail(tmp_path, "x.png") == ("", False)


def test_a_run_that_was_moved_keeps_its_pictures(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "here", "dpo", prompts=2)
    shutil.move(run, tmp_path / "there")
    gallery = caption_gallery(read_runs([tmp_path / "there"]))
    assert [c.image[:22] for c in gallery.cards] == ["data:image/png;base64,"] * 2  # type: ignore[attr-defined]


def test_the_captions_of_two_runs_stand_together(tmp_path: Path) -> None:
    runs = read_runs([made_up_run(tmp_path / o, o, prompts=2) for o in ("dpo", "cw_dpo")])
    for run, after in zip(runs, ("a red box", "a blue big box"), strict=True):
        run.evaluated[0] |= {
            "base": {"caption": "a box"},
            "before": {"caption": "a red box"},
            "after": {"caption": after},
        }
    first = caption_gallery(runs).cards[0]  # type: ignore[attr-defined]
    assert [(r.who, list(r.words)) for r in first.remarks] == [
        ("base model", [("same", "a box")]),
        ("SFT, start of Stage 2", [("same", "a red box")]),
        ("SFT-C, start of Stage 2", [("same", "a red box")]),
        ("DPO", [("same", "a red box")]),
        ("CW-DPO", [("same", "a"), ("new", "blue big"), ("same", "box")]),
    ]
