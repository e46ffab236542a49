"""On a device of its own: whatever mixes tensors of the CPU with a GPU's fails here as it would there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import CliServer, assert_same_run, rows_of, tiny_recipe, write_yaml
from tiny_training import rows, trl_rows

SCRIPT = Path(__file__).parents[1] / "pretended_gpu.py"

TWO_STAGES: dict[str, dict[str, Any]] = {
    "lora": {"model": {"lora": {"r": 2, "alpha": 4, "dropout": 0.1}}},
    "influence": {"probes": {"influence": {"updates": 2}}},
    "filter": {"negatives": {"stage2": {"filter": {"logp": -100.0}}}},
    "refresh": {"negatives": {"stage2": {"refresh": {"every": 2}}}},
    "early_stop": {"probes": {"early_stop": {"patience": 1}}},
    "live": {"stage2": {"reference": "live"}},
    "padding_free": {"model": {"padding_free": True}},
    "activation_offloading": {"stage1": {"activation_offloading": True}, "stage2": {"activation_offloading": True}},
    "checkpointing": {"stage1": {"gradient_checkpointing": True}, "stage2": {"gradient_checkpointing": True}},
}
OWN = {"reward": "cider", "samples": 2, "max_new_tokens": 4, "rollout_batch_size": 4}
STAGE_2: dict[str, dict[str, Any]] = {
    "mdpo": {"objective": "mdpo"},
    "v_dpo": {"objective": "v_dpo"},
    "opa_dpo": {"objective": "opa_dpo"},
    "grpo": {"objective": "grpo", **OWN},
    "ppo": {"objective": "ppo", **OWN},
}


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PRETENDED_WITHOUT_FLOAT64": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(*arguments: str | Path) -> None:
    process = start(*arguments)
    _, said = process.communicate()
    assert process.returncode == 0, said


def test_mixed_devices_and_double_precision_are_refused() -> None:
    code = """
import torch
from pretended_gpu import DEVICE, pretended_gpu
from cwdpo.devices import capture_random, device, device_name, has_accelerator, restore_random, to_float64
with pretended_gpu(float64=False):
    assert device().type == DEVICE.type and has_accelerator() and device_name() == "pretended"
    there, here = torch.ones(3, device=DEVICE), torch.ones(3)
    assert (there + there).device == DEVICE and float((there + 1).sum()) == 6
    exact = dict(dtype=torch.float64, device=DEVICE)
    for wrong in (lambda: there + here, lambda: there.double(), lambda: torch.zeros(2, **exact)):
        try:
            wrong()
        except (RuntimeError, TypeError) as error:
            print(type(error).__name__)
    assert to_float64(there).dtype == torch.float64
    restore_random(capture_random())
"""
    path = os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["RuntimeError", "TypeError", "TypeError"]


@pytest.mark.slow
def test_both_stages_as_on_the_cpu(tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]) -> None:
    whole = tiny_recipe(tiny_folder("qwen2_5_vl"))
    # The last bits of Stage 1's weights choose what is sampled from them.
    whole["negatives"]["stage2"] = {**whole["negatives"]["stage2"], "sample": 0}
    recipe = write_yaml(tmp_path / "recipe.yaml", whole)
    call("train", recipe, "--out", tmp_path / "there")
    code, done = cli_server.run("train", recipe, "--out", tmp_path / "here")
    assert code == 0, done.stderr
    for stage in ("stage1", "stage2"):
        there, here = (rows_of(tmp_path / place / stage / "metrics.jsonl") for place in ("there", "here"))
        assert [row["step"] for row in there] == [row["step"] for row in here]
        for one, other in zip(there, here, strict=True):
            assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-3)


@pytest.mark.slow
def test_writing_and_scoring(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    model = tiny_folder("qwen2_5_vl")
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(model, data={"size": 12, "held_out": 4}))
    call("negatives", recipe, "--out", tmp_path / "run")
    data = tmp_path / "run" / "data" / "held_out.jsonl"
    call("score", "--model", model, "--reference", model, "--data", data, "--out", tmp_path / "scores.jsonl")
    assert {row["delta"] for row in rows_of(tmp_path / "scores.jsonl")} == {0.0}


COUNT = """
import sys, torch, transformers
from pretended_gpu import pretended_gpu, waits
import from_trl

class Counting(transformers.TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        waits.clear()

    def on_step_end(self, args, state, control, **_):
        print("waits", waits.total())

begin = transformers.Trainer.__init__
def begun(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    self.add_callback(Counting())
transformers.Trainer.__init__ = begun
torch.Tensor.pin_memory = lambda self, device=None: self  # done by a thread, where operations cannot be taken over
with pretended_gpu():
    from_trl.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_waits_for_the_device_less_often_than_trl(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    pytest.importorskip("trl")
    trl_rows(rows(32, tmp_path, images=1)).save_to_disk(tmp_path / "data")
    folders = [SCRIPT.parent, SCRIPT.parents[1] / "examples"]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    found: dict[str, int] = {}
    for trainer in ("cwdpo", "trl"):
        given = ["--trainer", trainer, "--model", str(tiny_folder("llava")), "--data", str(tmp_path / "data")]
        command = [sys.executable, "-c", COUNT, *given, "--out", str(tmp_path / trainer), "--steps", "3"]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found[trainer] = int([line for line in done.stdout.splitlines() if line.startswith("waits")][-1].split()[1])
    assert 4 < found["cwdpo"] < found["trl"]  # some tens each, in four micro-batches


def test_a_type_that_the_gpu_lacks_is_told_before_any_work(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    whole = tiny_recipe(tiny_folder("qwen2_5_vl"))
    whole["model"]["dtype"] = "bfloat16"
    process = start("train", write_yaml(tmp_path / "recipe.yaml", whole), "--out", tmp_path / "run")
    _, said = process.communicate()
    assert process.returncode == 2
    assert said.splitlines()[-1] == "error: model.dtype: pretended does not compute in bfloat16; set it to float32"
    assert not (tmp_path / "run" / "negatives").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TWO_STAGES, *STAGE_2])
def test_kinds_of_runs(kind: str, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    changes = TWO_STAGES.get(kind) or {"stage1": {"enabled": False}, "stage2": STAGE_2[kind]}
    whole = tiny_recipe(tiny_folder("qwen2_5_vl"))
    for stage in ("stage1", "stage2"):
        negatives = changes.get("negatives", {}).get(stage, {})
        whole["negatives"] = {**whole["negatives"], stage: {**whole["negatives"][stage], **negatives}}
        whole[stage]["max_steps"] = 3
    others = {section: values for section, values in changes.items() if section != "negatives"}
    merged = {section: {**whole.get(section, {}), **values} for section, values in others.items()}
    call("train", write_yaml(tmp_path / "recipe.yaml", {**whole, **merged}), "--out", tmp_path / "run")
    assert (tmp_path / "run" / "stage2" / "done.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "llava_next", "qwen3_5"])
def test_families(family: str, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    changes = {"stage1": {"max_steps": 2}, "stage2": {"max_steps": 2}}
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(tiny_folder(family), **changes))
    call("train", recipe, "--out", tmp_path / "run")


@pytest.mark.slow
def test_compare_and_influence(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    model = tiny_folder("qwen2_5_vl")
    call("train", write_yaml(tmp_path / "recipe.yaml", tiny_recipe(model)), "--out", tmp_path / "run")
    data, trained = tmp_path / "run" / "data" / "held_out.jsonl", tmp_path / "run" / "stage2" / "model"
    call("compare", model, trained, "--data", data, "--prompts", "4", "--out", tmp_path / "compared.json")
    few = ["--updates", "2", "--observed", "2", "--projections", "2"]
    call("influence", trained, "--data", data, "--reference", model, *few, "--out", tmp_path / "influence.jsonl")


@pytest.mark.slow
def test_goes_on_where_it_was_killed(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl")))
    call("train", recipe, "--out", tmp_path / "whole")
    process = start("train", recipe, "--out", tmp_path / "run")
    while process.poll() is None and not (tmp_path / "run/stage1/checkpoints/checkpoint-2/complete.json").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    call("train", recipe, "--out", tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
