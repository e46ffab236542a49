"""Whole runs on a base in 4 bits: both stages, killed and taken up again, two processes, and what is refused."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import CliServer, assert_same_run, files_of, rows_of, tiny_recipe, write_yaml

NF4: dict[str, Any] = {"quantization": "nf4", "lora": {"r": 2, "alpha": 4, "dropout": 0.1}, "freeze": ["vision"]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("recipe")
    return write_yaml(folder / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl"), model=NF4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, recipe: Path) -> tuple[Path, int]:
    """The directory of an uninterrupted run, and how often it touched its files."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, call = cli_server.run("train", recipe, "--out", run, watch=run)
    assert code == 0, call.stderr
    return run, call.events


@pytest.mark.slow
def test_both_stages(whole: tuple[Path, int]) -> None:
    """Stage 2 goes on from Stage 1's adapter; a stage leaves the adapter alone, on the base's own folder."""
    run, _ = whole
    for stage in ("stage1", "stage2"):
        names = [name for name in files_of(run) if name.startswith(f"{stage}/model/")]
        assert f"{stage}/model/adapter_model.safetensors" in names and f"{stage}/model/model.safetensors" not in names
        losses = [row["loss"] for row in rows_of(run / stage / "metrics.jsonl") if "loss" in row]
        assert losses[0] > losses[-1]
    settings = json.loads((run / "stage2" / "model" / "adapter_config.json").read_text())
    assert Path(settings["base_model_name_or_path"]).name == "qwen2_5_vl"
    assert len(rows_of(run / "evaluation" / "captions_after.jsonl")) == 6


@pytest.mark.slow
def test_killed_while_writing(whole: tuple[Path, int], tmp_path: Path, cli_server: CliServer, recipe: Path) -> None:
    """Bitwise the same end."""
    run, chance, kills = tmp_path / "run", random.Random(4), 0
    while True:
        moment = chance.randint(1, round(whole[1] / 2))
        code, call = cli_server.run("train", recipe, "--out", run, kill_at=moment, watch=run)
        if code == 0:
            break
        assert code == -signal.SIGKILL, call.stderr
        kills += 1
    assert kills >= 2
    assert_same_run(whole[0], run)


@pytest.mark.slow
def test_two_processes(whole: tuple[Path, int], tmp_path: Path, cli_server: CliServer, recipe: Path) -> None:
    """DDP: the same losses but for rounding. Dropout draws other numbers in two processes, so it is off here."""
    mix = {"dataset": 1, "other": 1}
    changes = ["model.lora.dropout=0", *(f"negatives.stage{n}={json.dumps(mix)}" for n in (1, 2))]
    losses: list[list[float]] = []
    for ranks in (1, 2):
        sets = [part for change in changes for part in ("--set", change)]
        call = cli_server.start("train", recipe, "--out", tmp_path / str(ranks), *sets, ranks=ranks)
        assert call.codes() == [0] * ranks, call.stderr
        rows = [r for r in rows_of(tmp_path / str(ranks) / "stage2" / "metrics.jsonl") if "rewards/margins" in r]
        losses.append([row["loss"] for row in rows])
        # The reference is what Stage 1 ended with: its adapter on the base in 4 bits.
        assert abs(rows[0]["rewards/margins"]) < 1e-4 < abs(rows[-1]["rewards/margins"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_sharded_weights_are_refused(tmp_path: Path, cli_server: CliServer, recipe: Path) -> None:
    call = cli_server.start("train", recipe, "--out", tmp_path / "run", ranks=2, sharding="fsdp2")
    assert call.codes() == [2, 2], call.stderr
    errors = [text for text in call.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and "model.quantization: needs whole weights" in errors[0]
