"""Each stage is a run of its own in the trackers, with the scalars of metrics.jsonl and of the probes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cwdpo.files import read_jsonl
from cwdpo.recipe import Recipe
from cwdpo.run import Run
from cwdpo.run.trackers import tracked
from tiny_runs import tiny_recipe


def test_tensorboard_outlives_the_checkpoints(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    short: dict[str, Any] = {"max_steps": 2, "log_steps": 1}
    recipe = tiny_recipe(tiny_folder("qwen2_5_vl"), report_to=["tensorboard"], stage1=short, stage2=short)
    recipe |= {"negatives": {}, "evaluation": {"prompts": 0}}
    Run(tmp_path / "run", Recipe.model_validate(recipe)).execute()
    for stage in ("stage1", "stage2"):
        events = EventAccumulator(str(tmp_path / "run" / stage / "tensorboard")).Reload()
        shown = {step.step: step.value for step in events.Scalars("train/loss")}
        logged = [row for row in read_jsonl(tmp_path / "run" / stage / "metrics.jsonl") if "loss" in row]
        assert shown == pytest.approx({row["step"]: row["loss"] for row in logged})
        read = list(read_jsonl(tmp_path / "run" / stage / "probes.jsonl"))
        drift = {step.step: step.value for step in events.Scalars("train/probe/tv")}
        assert drift == pytest.approx({row["step"]: row["tv"] for row in read}, abs=1e-6)
        chosen = [step.value for step in events.Scalars("train/probe/logp_mean/chosen")]
        assert chosen == pytest.approx([row["kinds"]["chosen"]["logp_mean"] for row in read], rel=1e-6)


def test_a_trackers_run_ends_with_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(finish=lambda name=name: ended.append(name)))
    with pytest.raises(KeyboardInterrupt), tracked(["wandb", "tensorboard"], tmp_path):
        raise KeyboardInterrupt
    assert ended == ["wandb"]
