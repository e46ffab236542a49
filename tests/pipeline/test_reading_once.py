"""`fsdp_cpu_ram_efficient_loading`: which models of a run one process reads, and what happens where it cannot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cwdpo.models.fsdp import is_sharded
from cwdpo.models.meta_init import is_bare
from cwdpo.processes import join_processes
from cwdpo.recipe import Recipe
from cwdpo.run import run_dir as rundir
from cwdpo.run.run_dir import RunDirectory
from several_processes import SLOW, one_error
from sharding_on_cpu import FSDP2, in_processes
from tiny_models import tiny
from tiny_runs import CliServer, assert_same_run, tiny_recipe, write_yaml


@pytest.mark.parametrize("setting", ["true", "false"])
def test_which_models(
    setting: str, tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One to train, and one too large for a GPU; a smaller one is whole in both, and transformers sees no setting."""
    for name, value in (FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": setting, "WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    model = str(tiny_folder("qwen2_5_vl"))
    run = RunDirectory(tmp_path / "run", Recipe.model_validate(tiny_recipe(model)))

    def work(rank: int) -> dict[str, Any]:
        team = join_processes()
        found: dict[str, Any] = {"taken": (team.reads_once, os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"])}
        found["trained"] = is_bare(run.trainable(model))
        found["large"] = is_sharded(run.inference_model(model))
        monkeypatch.setattr(rundir, "too_large", lambda model: False)
        found["small"] = is_sharded(run.inference_model(model)), is_bare(run.trainable(model, shared=False))
        return found

    once = setting == "true"
    for rank, found in enumerate(in_processes(2, work, tmp_path / "work")):
        assert found["taken"] == (once, "false")
        assert found["trained"] == (once and rank > 0)
        assert found["large"] and found["small"] == (False, False)


def test_a_reader_that_fails_ends_both(tmp_path: Path, cli_server: CliServer) -> None:
    """A weight that the file lacks is found by the process that reads: one line, and nobody waits."""
    model = tiny("qwen2_5_vl", tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights.pop(next(name for name in weights if "mlp" in name))
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(model))
    call = cli_server.start("train", recipe, "--out", tmp_path / "run", ranks=2, sharding="fsdp2")
    assert call.codes() == [2, 2], call.stderr
    assert "weights are not in the file" in one_error(call.stderr)


def test_fsdp1_is_refused(tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]) -> None:
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl")))
    call = cli_server.start("train", recipe, "--out", tmp_path / "run", ranks=2, sharding="fsdp1")
    assert call.codes() == [2, 2], call.stderr
    assert "fsdp_cpu_ram_efficient_loading: true needs fsdp_version: 2" in one_error(call.stderr)


LORA: dict[str, Any] = {
    "model": {"lora": {"r": 4, "dora": True, "dropout": 0.1}, "dtype": "bfloat16", "train_fully": ["projector"]},
    "stage2": {"reference": "live"},
}


@pytest.mark.parametrize(
    ("family", "changes", "later"),
    [
        pytest.param("qwen2_5_vl", {}, "fsdp2-read-by-all", marks=SLOW),
        pytest.param("qwen2_5_vl", LORA, "fsdp2", marks=SLOW),
        pytest.param("qwen3_vl_moe", {"stage2": {"reference": "live"}}, "fsdp2", marks=SLOW),
    ],
    ids=["whole", "adapters", "experts"],
)
def test_a_run_is_the_same(
    family: str,
    changes: dict[str, Any],
    later: str,
    tmp_path: Path,
    cli_server: CliServer,
    tiny_folder: Callable[[str], Path],
) -> None:
    """Whoever reads: every file is the same to the last bit, of a killed run too, with the other setting after it."""
    values = tiny_recipe(tiny_folder(family), data={"size": 24})
    for section, settings in changes.items():
        values[section] |= settings
    recipe = write_yaml(tmp_path / "recipe.yaml", values)
    once, whole = tmp_path / "once", tmp_path / "whole"
    kill: dict[str, Any] = {"watch": once, "kill_on": "stage2/checkpoints/checkpoint-2/complete.json"}
    call = cli_server.start("train", recipe, "--out", once, ranks=2, sharding="fsdp2", **kill)
    assert -signal.SIGKILL in call.codes(), call.stderr
    for run, sharding in ((once, later), (whole, "fsdp2-read-by-all")):
        call = cli_server.start("train", recipe, "--out", run, ranks=2, sharding=sharding)
        assert call.codes() == [0, 0], call.stderr
    assert_same_run(once, whole)
