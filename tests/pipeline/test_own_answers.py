"""OPA-DPO as a whole run: own answers, corrections, SFT on both, preference from there; and killed in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cwdpo.recipe import Recipe
from cwdpo.run.algorithm1 import Run
from tiny_runs import CliServer, assert_same_run, tiny_recipe, write_yaml

OPA = {
    "model": {"path": "scenes"},
    "negatives": {"stage1": {}, "stage2": {}, "correction": {"by": "exact", "max_new_tokens": 24, "batch_size": 8}},
    "stage1": {"objective": "sft", "max_steps": 2},
    "stage2": {"objective": "opa_dpo", "max_steps": 2},
    "probes": {"every": 0},
    "evaluation": {"prompts": 2},
}


def test_opa_dpo_from_the_models_own_answers(tmp_path: Path) -> None:
    """Stage 1 learns what was corrected, Stage 2 compares both chosen responses with the model's own answer."""
    recipe = tiny_recipe("scenes", **OPA)
    recipe["negatives"] = OPA["negatives"]  # without the sources of the tiny recipe
    Run(tmp_path / "run", Recipe.model_validate(recipe)).execute()
    counts = json.loads((tmp_path / "run" / "correction" / "done.json").read_text())["counts"]
    assert counts["stage1"]["corrected"] > 0 and counts["stage2"]["corrected"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "negatives" / "stage2" / "groups.jsonl").open()]
    assert len(rows) == counts["stage2"]["corrected"]  # answers that were right are compared with nothing
    assert {r["source"] for row in rows for r in row["responses"] if r["role"] == "rejected"} == {"dataset"}


@pytest.mark.slow
def test_killed_while_answers_are_corrected(tmp_path: Path, cli_server: CliServer) -> None:
    """The same run in the end, and no answer twice."""
    recipe = tiny_recipe("scenes", **OPA)
    recipe["negatives"] = OPA["negatives"]
    path = write_yaml(tmp_path / "recipe.yaml", recipe)
    assert cli_server.run("train", path, "--out", tmp_path / "whole")[0] == 0
    for moment in (25, 45):
        code, _ = cli_server.run("train", path, "--out", tmp_path / "killed", kill_at=moment, watch=tmp_path / "killed")
        assert code == -9
    assert cli_server.run("train", path, "--out", tmp_path / "killed")[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
