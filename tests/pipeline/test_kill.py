"""`kill -9` at any moment, run the same command again: bitwise what an uninterrupted run gives."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from several_processes import wait_for
from tiny_runs import CliServer, assert_same_run, files_of, rows_of, step_of, tiny_recipe, write_yaml

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"model": {"lora": {"r": 2, "alpha": 4, "dropout": 0.1}}},
    "second_image": {"stage1": {"enabled": False}, "stage2": {"objective": "mdpo"}, "probes": {"every": 0}},
}


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, tiny_folder: Callable[[str], Path], scenes_run: Any
) -> Callable[[str], tuple[Path, Path, int]]:
    """`uninterrupted(kind)`: recipe, run directory, and how often the run touched its files."""
    made: dict[str, tuple[Path, Path, int]] = {"full": scenes_run}

    def run(kind: str) -> tuple[Path, Path, int]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            recipe = write_yaml(folder / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl"), **KINDS[kind]))
            code, call = cli_server.run("train", recipe, "--out", folder / "run", watch=folder / "run")
            assert code == 0, call.stderr
            made[kind] = (recipe, folder / "run", call.events)
        return made[kind]

    return run


def test_a_run_is_whole(uninterrupted: Callable[[str], tuple[Path, Path, int]]) -> None:
    _, run, events = uninterrupted("full")
    assert events > 200
    files = files_of(run)
    assert not [f for f in files if "checkpoint" in f or ".tmp" in f]
    for name in ("recipe.yaml", "manifest.json", "report.html", "evaluation/summary.json", "reference/logps.sqlite"):
        assert name in files
    for stage, updates in (("stage1", 5), ("stage2", 4)):
        # the first update and every second (log_steps = 2); probes every 2 and at the end
        losses = [row["step"] for row in rows_of(run / stage / "metrics.jsonl") if "loss" in row]
        assert losses == [1, 2, 4]
        probed = [row["step"] for row in rows_of(run / stage / "probes.jsonl")]
        assert probed == [0, 2, 4, *([updates] if updates % 2 else [])]
        assert f"{stage}/model/processor_config.json" in files


def test_a_method_without_reference_leaves_none(
    tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    changes = {"stage1": {"enabled": False}, "stage2": {"objective": "simpo"}, "probes": {"every": 0}}
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl"), **changes))
    code, call = cli_server.run("train", recipe, "--out", tmp_path / "run")
    assert code == 0, call.stderr
    assert not (tmp_path / "run" / "reference").exists()
    assert "SimPO" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    first = rows_of(tmp_path / "run" / "stage2" / "metrics.jsonl")[0]
    assert -20 < first["rewards/chosen"] < -10  # β·ℓ̄: the random model's ℓ̄ is about −8, and SimPO's β is 2


def test_run_again_does_nothing(uninterrupted: Callable[[str], tuple[Path, Path, int]], cli_server: CliServer) -> None:
    recipe, run, _ = uninterrupted("full")
    before = {name: (run / name).stat().st_mtime_ns for name in files_of(run)}
    code, call = cli_server.run("train", recipe, "--out", run)
    assert code == 0, call.stderr
    changed = {name for name in files_of(run) if (run / name).stat().st_mtime_ns != before[name]}
    assert changed == {"recipe.yaml", "manifest.json", "report.html"}


@pytest.mark.parametrize(
    ("kind", "kills", "seed"),
    [
        ("full", 4, 0),
        *(pytest.param(*rest, marks=pytest.mark.slow) for rest in (("lora", 2, 1), ("second_image", 2, 2))),
    ],
)
def test_killed_while_writing(
    kind: str,
    kills: int,
    seed: int,
    tmp_path: Path,
    uninterrupted: Callable[[str], tuple[Path, Path, int]],
    cli_server: CliServer,
) -> None:
    """Killed at random things that it does to its files, again and again, until it comes through."""
    recipe, whole, events = uninterrupted(kind)
    chance, run = random.Random(seed), tmp_path / "run"
    struck: list[str] = []
    while True:
        # A call that goes on from a kill has about as much less to do as was done: shares of the whole add up.
        moment = chance.randint(1, round(2 * events / (kills + 2)))
        code, call = cli_server.run("train", recipe, "--out", run, kill_at=moment, watch=run)
        if code == 0:
            break
        assert code == -signal.SIGKILL, call.stderr
        struck.append(step_of(call.event.split(" ")[1]))
        assert len(struck) < 20 * kills
    assert len(struck) >= kills, struck
    assert len(set(struck)) >= min(3, kills), struck
    assert_same_run(whole, run)


STEPS = ("data", "negatives/stage1", "stage1", "negatives/stage2", "reference", "stage2", "evaluation")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_in_every_step(
    step: str, tmp_path: Path, uninterrupted: Callable[[str], tuple[Path, Path, int]], cli_server: CliServer
) -> None:
    """One kill inside each step, whatever the seed."""
    recipe, whole, _ = uninterrupted("full")
    run = tmp_path / "run"
    call = cli_server.start("train", recipe, "--out", run)
    wait_for(run / step)
    time.sleep(random.Random(step).uniform(0, 0.2))
    call.signal(signal.SIGKILL)
    assert call.wait() == -signal.SIGKILL
    assert (run / step).exists()
    assert not (run / "evaluation" / "done.json").exists()
    code, call = cli_server.run("train", recipe, "--out", run)
    assert code == 0, call.stderr
    assert_same_run(whole, run)


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGINT, "stage2"),
        pytest.param(signal.SIGINT, "stage1", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "stage1", marks=pytest.mark.slow),
    ],
)
def test_signal_saves_and_says_how_to_go_on(
    number: int,
    stage: str,
    tmp_path: Path,
    uninterrupted: Callable[[str], tuple[Path, Path, int]],
    cli_server: CliServer,
) -> None:
    recipe, whole, _ = uninterrupted("full")
    run = tmp_path / "run"
    call = cli_server.start("train", recipe, "--out", run)
    wait_for(run / stage / "checkpoints" / "checkpoint-2")
    call.signal(number)
    assert call.wait() == (75 if number == signal.SIGTERM else 130)
    last = call.stderr.splitlines()[-1]
    assert last.startswith("stopped: ") and "the same command again" in last
    assert "Traceback" not in call.stderr
    assert list((run / stage).rglob("complete.json")) or (run / stage / "done.json").exists()
    code, call = cli_server.run("train", recipe, "--out", run)
    assert code == 0, call.stderr
    assert_same_run(whole, run)


@pytest.mark.slow
def test_interrupt_outside_training(
    tmp_path: Path, uninterrupted: Callable[[str], tuple[Path, Path, int]], cli_server: CliServer
) -> None:
    recipe, whole, _ = uninterrupted("full")
    run = tmp_path / "run"
    call = cli_server.start("train", recipe, "--out", run)
    wait_for(run / "negatives" / "stage1" / "beam.jsonl")
    call.signal(signal.SIGINT)
    assert call.wait() == 130
    assert call.stderr.splitlines()[-1].startswith("stopped: ") and "Traceback" not in call.stderr
    code, call = cli_server.run("train", recipe, "--out", run)
    assert code == 0, call.stderr
    assert_same_run(whole, run)


KILLS = ("data", "data", "negatives/stage1", *["stage1"] * 2, "negatives/stage2", "reference", *["stage2"] * 2)
"""Where the kills strike: a random time after the first sign that a call is at work in that step or, where a kill
came so late that the step is over, in a later one. One more comes last, in the evaluation."""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, uninterrupted: Callable[[str], tuple[Path, Path, int]]) -> None:
    """True processes, killed after random times."""
    recipe, whole, _ = uninterrupted("full")
    run, chance, struck = tmp_path / "run", random.Random(0), list[str]()
    command = [sys.executable, "-m", "cwdpo", "train", str(recipe), "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for step in (*KILLS, "evaluation"):
        ahead = [run / later for later in STEPS[STEPS.index(step) :]]
        began = _newest(*ahead)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
        while process.poll() is None and _newest(*ahead) == began:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02 if step == "evaluation" else 0.15))
        process.kill()
        if process.wait() == 0:  # on a fast machine the last step may be over before the kill comes
            break
        assert process.returncode == -signal.SIGKILL
        struck.append([s for s in STEPS if (run / s).exists()][-1])
    # How many different ones depends on the machine: `test_killed_in_every_step` strikes each of them.
    assert len(struck) >= len(KILLS) // 2 and len(set(struck)) >= 2, struck
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert_same_run(whole, run)


def _newest(*folders: Path) -> tuple[int, str]:
    """The file that was written last."""
    found: list[tuple[int, str]] = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, str(path)))
    return max(found, default=(0, ""))
