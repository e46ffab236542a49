"""GRPO and PPO on several processes: the same responses, rewards and losses as on one, also after a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cwdpo.files import write_jsonl
from several_processes import SLOW, Runs, differences, one_error, wait_for, whole_runs
from tiny_models import sample_groups
from tiny_runs import CliServer, assert_same_run, rows_of, tiny_recipe, write_yaml
from tiny_training import differing

NAMES = ("grpo", "ppo")


def recipe_of(name: str, folder: Path, model: Path, images: tuple[int, ...]) -> Path:
    """9 prompts in updates of 8: an epoch's last one leaves a process without rows.

    Three prompts are answered at once, of different processes and, with PPO, of different updates.
    """
    rows = [
        {"prompt": f"look at {i}", "images": [image.path for image in group.images], "chosen": group.responses[0].text}
        for i, group in enumerate(sample_groups(12, folder / "images", images=images))
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    own = {"objective": name, "reward": "cider", "samples": 4, "max_new_tokens": 12, "rollout_batch_size": 3}
    values = tiny_recipe(
        model,
        data={"path": str(folder / "rows.jsonl"), "held_out": 2, "stage1_share": 0.1},
        stage1={"enabled": False},
        stage2={**own, "max_steps": 5, "micro_batch_size": 2, "save_steps": 1, "log_steps": 1},
        probes={"every": 0},
        evaluation={"prompts": 0},
    )
    del values["data"]["size"]
    return write_yaml(folder / f"{name}.yaml", values)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> dict[str, Path]:
    """Every third prompt has no picture."""
    folder = tmp_path_factory.mktemp("recipes")
    return {name: recipe_of(name, folder, tiny_folder("qwen2_5_vl"), (1, 0, 1)) for name in NAMES}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, recipes: dict[str, Path]) -> Runs:
    """`runs(name, n)`: the directory of a whole run of n processes, which may share the weights too."""
    made = whole_runs(cli_server, lambda: tmp_path_factory.mktemp("runs"))
    return lambda name, ranks, sharding="": made(recipes[name], ranks, sharding)


@pytest.mark.parametrize(
    ("ranks", "sharding"),
    [
        (2, ""),
        pytest.param(4, "", marks=SLOW),
        pytest.param(2, "fsdp2", marks=SLOW),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_curves_agree(name: str, ranks: int, sharding: str, runs: Runs) -> None:
    one, many = runs(name, 1), runs(name, ranks, sharding)
    assert differences(one, many) == []
    logged = [row for row in rows_of(one / "stage2" / "metrics.jsonl") if "loss" in row]
    assert len(logged) == 5
    assert len({row["reward"] for row in logged}) >= 4 and sum(row["grad_norm"] > 0.1 for row in logged) >= 3


@pytest.mark.parametrize(
    ("ranks", "stop", "sharding"),
    [
        pytest.param(2, signal.SIGKILL, "", marks=SLOW),
        (1, signal.SIGTERM, ""),
        pytest.param(4, signal.SIGTERM, "fsdp2", marks=SLOW),
    ],
)
def test_goes_on_within_a_rollout(
    ranks: int,
    stop: signal.Signals,
    sharding: str,
    tmp_path: Path,
    cli_server: CliServer,
    recipes: dict[str, Path],
    runs: Runs,
) -> None:
    """Two processes stop after the first of two updates whose responses were sampled together."""
    run = tmp_path / "run"
    call = cli_server.start("train", recipes["ppo"], "--out", run, ranks=2, sharding=sharding)
    wait_for(run / "stage2" / "checkpoints" / "checkpoint-1" / "complete.json")
    os.kill(call.pids[1], stop)
    assert call.codes() == ([2, -9] if stop == signal.SIGKILL else [75, 75]), call.stderr
    call = cli_server.start("train", recipes["ppo"], "--out", run, ranks=ranks, sharding=sharding)
    assert call.codes() == [0] * ranks, call.stderr
    if ranks == 2:
        assert_same_run(runs("ppo", 2, sharding), run)
    assert differences(runs("ppo", 1), run) == []


@pytest.mark.parametrize("sharding", [pytest.param("fsdp2", marks=SLOW)])
def test_rows_without_pictures(sharding: str, tmp_path: Path, cli_server: CliServer, recipes: dict[str, Path]) -> None:
    """Prompts answered one by one: where weights are shared, no process answers one with and another one without."""
    for ranks in (1, 2):
        alone = ("--set", "stage2.rollout_batch_size=1", "--set", "stage2.max_steps=3")
        call = cli_server.start(
            "train",
            recipes["grpo"],
            "--out",
            tmp_path / f"{ranks}",
            *alone,
            ranks=ranks,
            sharding=sharding * (ranks > 1),
        )
        assert call.codes() == [0] * ranks, call.stderr
    assert differences(tmp_path / "1", tmp_path / "2") == []


@pytest.mark.parametrize("sharding", [pytest.param(k, marks=SLOW) for k in ("", "fsdp2")])
def test_an_update_without_pictures(
    sharding: str, tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    """An epoch's last prompt has none: the optimizer's moments move no weight of the encoder, as on one process."""
    recipe = recipe_of("grpo", tmp_path, tiny_folder("qwen2_5_vl"), (1, 0))
    weights = []
    for updates in (1, 2):
        out = tmp_path / f"{updates}"
        changes = ("--set", "stage2.schedule=constant", "--set", f"stage2.max_steps={updates}")
        call = cli_server.start("train", recipe, "--out", out, *changes, ranks=2, sharding=sharding)
        assert call.codes() == [0, 0], call.stderr
        weights.append(load_file(out / "stage2" / "model" / "model.safetensors"))
    moved = set(differing(*weights))
    assert moved and moved == {name for name in weights[0] if not name.startswith("visual.")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("stage2.max_new_tokens=9999 --set model.max_length=10050", "stage2.max_new_tokens"),
        ("stage2.learning_rate=1e36", "update 3"),
    ],
)
def test_a_mistake_is_one_line(
    change: str, named: str, tmp_path: Path, cli_server: CliServer, recipes: dict[str, Path]
) -> None:
    """Prompts that are too long belong to one process or the other; a model that is broken is so in both."""
    call = cli_server.start("train", recipes["grpo"], "--out", tmp_path, "--set", *change.split(" "), ranks=2)
    assert call.codes() == [2, 2], call.stderr
    assert named in one_error(call.stderr) and "Traceback" not in call.stderr
