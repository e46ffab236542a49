"""Every benchmark runs at tiny size and writes what the tables are made from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
ROWS = {
    "against_trl": ("times_as_fast", "saved_share", "peak_share", "agreement"),
    "step_costs": ("question", "seconds_per_prompt"),
    "growth": ("times_as_fast", "saved_share"),
    "attention": ("times_as_fast", "peak_share", "agreement"),
    "padding": ("tokens_ratio", "flops_ratio", "times_as_fast", "peak_share", "agreement"),
    "generation_batched": ("times_as_fast", "prompts_with_the_same_texts"),
    "filters_on_scenes": ("share_right", "filters"),
    "arithmetic": ("ours_over_least", "trl_over_ours"),
    "large_models": ("seconds_per_pair", "flops", "mfu"),
    "processes": ("largest_difference", "stage1_loss", "stage2_loss"),
    "loading": ("own_mib", "of_the_file_mib", "own_over_model"),
    "plan_against_measured": ("memory_ratio", "flops_ratio"),
}


def run(script: str, folder: Path) -> dict[str, Any]:
    if script in {"against_trl", "arithmetic", "large_models"}:
        pytest.importorskip("trl")
    out = folder / "result.json"
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--tiny", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("script", ROWS)
def test_runs(script: str, tmp_path: Path) -> None:
    result = run(script, tmp_path)
    assert result["rows"] and result["settings"]["tiny"] is True
    assert {"date", "cpu", "threads", "torch", "transformers", "load_before", "load_after"} <= result["hardware"].keys()
    for name in ROWS[script]:
        assert all(name in row for row in result["rows"]), name
    if script == "against_trl":
        for row in result["rows"]:  # the same loss and the same gradient, away from the reference
            assert row["agreement"]["loss_difference"] < 1e-4
            assert row["agreement"]["gradient_difference"] < 1e-4
            assert abs(row["agreement"]["loss"] - 0.6931) > 1e-4
    if script == "processes":
        assert {row["processes"] for row in result["rows"]} == {1, 2}
        assert all(row["largest_difference"] < 1e-5 for row in result["rows"])
    if script == "arithmetic":
        assert all(0.9 < ratio < 1.6 for row in result["rows"] for ratio in row["ours_over_least"].values())
