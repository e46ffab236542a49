"""Runs in processes of their own end as runs in this one; one failure, one signal, stops them all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cwdpo.errors import DataError, RunError
from cwdpo.files import read_json
from cwdpo.recipe import Recipe
from cwdpo.run import Run, Silent, run_side_by_side
from tiny_runs import assert_same_run, tiny_recipe

LONG = {"stage1": {"max_steps": 4000, "batch_size": 4, "micro_batch_size": 4, "save_steps": 1000}}


class Heard(Silent):
    def __init__(self) -> None:
        self.events: list[tuple[str, str, tuple[Any, ...]]] = []

    def beside(self, run: str, kind: str, *facts: Any) -> None:
        self.events.append((run, kind, facts))


def recipe(folder: Path, name: str, seed: int, **changes: Any) -> Recipe:
    return Recipe.model_validate(tiny_recipe(folder, **changes) | {"name": name, "seed": seed})


@pytest.mark.slow
def test_two_processes_end_as_one(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    folder, heard = tiny_folder("qwen2_5_vl"), Heard()
    recipes = {"a": recipe(folder, "first", 1), "b": recipe(folder, "second", 2)}
    runs = {name: (tmp_path / name, r) for name, r in recipes.items()}
    summaries = run_side_by_side(runs, processes=2, reporter=heard)
    assert list(summaries) == ["a", "b"]
    assert summaries["a"] == read_json(tmp_path / "a" / "evaluation" / "summary.json")
    Run(tmp_path / "alone", recipes["b"]).execute()
    assert_same_run(tmp_path / "alone", tmp_path / "b")
    for name in ("first", "second"):
        said = [(kind, facts) for run, kind, facts in heard.events if run == name]
        trained = [facts[0] for kind, facts in said if kind == "training" and facts[0] is not None]
        assert {f.title for f in trained} == {"stage1 · sft_c", "stage2 · cw_dpo"}
        assert trained[-1].step == trained[-1].total == 4
        assert trained[-1].probe["step"] == 4
        assert {"step", "note", "progress"} <= {kind for kind, _ in said}


def test_a_failure_stops_the_others_and_keeps_what_they_did(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("qwen2_5_vl")
    runs = {
        "good": (tmp_path / "good", recipe(folder, "good", 1, **LONG)),
        "bad": (tmp_path / "bad", recipe(folder, "bad", 1, data={"path": "nowhere.jsonl"})),
    }
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        run_side_by_side(runs, processes=2, reporter=Silent())
    assert not (tmp_path / "good" / "stage1" / "model").exists()
    with Run(*runs["good"]).locked():  # nobody is at work in it any more
        pass


@pytest.mark.slow
def test_an_interrupt_saves_every_run(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    folder, heard = tiny_folder("qwen2_5_vl"), Heard()
    runs = {name: (tmp_path / name, recipe(folder, name, 1, **LONG)) for name in ("a", "b")}

    def interrupt() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            steps = {run: f[0].step for run, kind, f in list(heard.events) if kind == "training" and f[0] is not None}
            if len(steps) == 2 and min(steps.values()) > 2:
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(runs, processes=2, reporter=heard)
    for name in runs:
        checkpoints = list((tmp_path / name / "stage1" / "checkpoints").glob("checkpoint-*"))
        assert [c for c in checkpoints if (c / "complete.json").is_file()], name


@pytest.mark.slow
def test_a_bug_shows_where_it_is(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    runs = {name: (tmp_path / name, recipe(tiny_folder("qwen2_5_vl"), name, 1)) for name in ("a", "b")}
    with pytest.raises(RuntimeError, match="_broken") as found:
        run_side_by_side(runs, processes=2, reporter=Silent(), prepare=_broken)
    assert isinstance(found.value.__cause__, ZeroDivisionError)


def _broken() -> None:
    _ = 1 / 0


@pytest.mark.slow
def test_runs_end_when_the_one_that_asked_is_killed(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("qwen2_5_vl")
    runs = {name: (tmp_path / name, recipe(folder, name, 1, **LONG)) for name in ("a", "b")}
    asking = multiprocessing.get_context("spawn").Process(target=_ask, args=(runs,))
    asking.start()
    logs = [tmp_path / name / "stage1" / "metrics.jsonl" for name in runs]
    _wait_for(lambda: all(log.is_file() for log in logs))
    workers = psutil.Process(asking.pid).children(recursive=True)
    assert len(workers) >= 2
    asking.kill()
    asking.join()
    _wait_for(lambda: all(_is_free(*run) for run in runs.values()))
    for name in runs:
        checkpoints = list((tmp_path / name / "stage1" / "checkpoints").glob("checkpoint-*"))
        assert [c for c in checkpoints if (c / "complete.json").is_file()], name
    assert not psutil.wait_procs(workers, timeout=60)[1]


def _ask(runs: dict[str, tuple[Path, Recipe]]) -> None:
    run_side_by_side(runs, processes=2, reporter=Silent())


def _is_free(folder: Path, asked: Recipe) -> bool:
    try:
        with Run(folder, asked).locked():
            return True
    except RunError:
        return False


def _wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)
