"""What the probe callback keeps beside `probes.jsonl`, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cwdpo.errors import RunError
from cwdpo.files import read_jsonl
from cwdpo.training.callbacks.probe_callback import ProbeCallback


class Scripted:
    """A probe set whose readings are given: ℓ̄ of each prompt by kind, and the tokens shown."""

    digest, floor, tau = "d", -3.0, 1.0

    def __init__(self, *readings: tuple[list[dict[str, Any]], Any]) -> None:
        self.readings = list(readings)

    def read(self, model: Any, scorer: Any, *, start: Any, keep: bool, **how: Any) -> tuple[dict[str, Any], Any]:
        prompts, tokens = self.readings.pop(0)
        means = [row["chosen"] for row in prompts]
        reading = {"kinds": {"chosen": {"logp_mean": sum(means) / len(means)}}, "prompts": prompts}
        return {**reading, "top_tokens": tokens}, torch.zeros(1, 2) if keep else None


FIRST = [{"id": "a", "chosen": -3.0, "hard": -5.0}, {"id": "b", "chosen": -4.0}]
SECOND = [{"id": "a", "chosen": -2.0}, {"id": "b", "chosen": -1.0}]


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=20, is_world_process_zero=True)


def callback(folder: Path, *readings: Any) -> ProbeCallback:
    return ProbeCallback(Scripted(*readings), None, folder, every=10)  # type: ignore[arg-type]


def test_prompts_and_tokens(tmp_path: Path) -> None:
    """Changes of +1 and +3: mean 2, standard deviation √2, standard error √2/√2 = 1. A resumed run writes the same."""
    probes = callback(tmp_path, (FIRST, ["start"]), (SECOND, ["ten"]))
    probes.on_train_begin(None, state(0), None)
    probes.on_step_end(None, state(10), None)
    assert [row["kinds"]["chosen"]["delta_start_se"] for row in probes.rows] == [0, pytest.approx(1.0)]
    lines = list(read_jsonl(tmp_path / "probe_prompts.jsonl"))
    start = {"chosen": [-3.0, -4.0], "hard": [-5.0, None]}
    assert lines == [
        {"step": 0, "ids": ["a", "b"], "floor": -3.0, "tau": 1.0, "logp_mean": start},
        {"step": 10, "logp_mean": {"chosen": [-2.0, -1.0]}},
    ]
    resumed = callback(tmp_path, (SECOND, ["ten again"]))
    resumed.on_train_begin(None, state(5), None)
    resumed.on_step_end(None, state(10), None)
    assert resumed.rows == probes.rows
    assert list(read_jsonl(tmp_path / "probe_prompts.jsonl")) == lines
    shown = json.loads((tmp_path / "probe_tokens.json").read_text())
    assert shown == {"step": 10, "start": ["start"], "last": ["ten again"]}


def test_a_changed_start_is_refused(tmp_path: Path) -> None:
    callback(tmp_path, (FIRST, [])).on_train_begin(None, state(0), None)
    path = tmp_path / "probe_start.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match=r"probe_start\.safetensors: its content has changed"):
        callback(tmp_path).on_train_begin(None, state(5), None)
