"""The demo, at a fiftieth of its size: what it leaves, and that it goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from cwdpo import demo_runs as demo
from cwdpo.files import read_json, read_jsonl


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_TRAIN", 96)
    monkeypatch.setattr(demo, "_HELD_OUT", 24)
    monkeypatch.setattr(demo, "_PROBES", 8)


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("small")
def test_the_demo(full: bool, tmp_path: Path) -> None:
    result = demo.run_demo(tmp_path, seed=3, full=full, processes=1)
    assert result == read_json(tmp_path / "summary.json")
    methods = result["methods"]
    assert list(methods) == ["sft_dpo", "cw_dpo", *["sft_rpo", "sft_shift", "sft_cw", "sftc_dpo"] * full]
    wanted = {"tv", "js", "ece", "entropy", "top1", "correct", "cider", *(f"logp_{k}" for k in ("hard", "easy"))}
    for arm, values in methods.items():
        assert wanted | {"logp_chosen", "logp_medium"} <= set(values), arm
        assert 0 < values["tv"] < 1
        assert 0 <= values["correct"] <= 1
    # An extra arm starts from the very model that the first arms' Stage 1 ended with.
    for arm, start in (("sft_rpo", "sft_dpo"), ("sftc_dpo", "cw_dpo")) * full:
        assert methods[arm]["before"] == methods[start]["before"]
    pictures = [[row["image"] for row in read_jsonl(tmp_path / a / "evaluation" / "rows.jsonl")] for a in methods]
    assert all(p == pictures[0] and len(p) == 16 for p in pictures)
    right = [[r["after"]["correct"] for r in read_jsonl(tmp_path / a / "evaluation" / "rows.jsonl")] for a in methods]
    paired = result["paired"]["cw_dpo"]["correct"]
    assert paired["mean"] == pytest.approx((sum(right[1]) - sum(right[0])) / 16)
    assert (tmp_path / "report.html").stat().st_size > 10_000

    trained = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors")}
    assert demo.run_demo(tmp_path, seed=3, full=full, processes=1) == result
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors")} == trained
