"""Negatives that change over Stage 2: drawn anew at every update, and written anew by the policy as it is."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cwdpo.data.schema import REJECTED
from cwdpo.errors import RecipeError
from cwdpo.recipe.load_recipe import load_recipe
from tiny_runs import CliServer, assert_same_run, rows_of, step_of, tiny_recipe, write_yaml

MIX = {"max_new_tokens": 5, "beam_width": 3, "batch_size": 4, "dataset": 1}
SCHEDULE = [{"at": 0, "perturb": 1}, {"at": 1, "sample": 2, "other": 1}]
CHANGING: dict[str, Any] = {
    **MIX,
    "schedule": SCHEDULE,
    "candidates": 3,
    "curriculum": "frontier",
    "refresh": {"every": 3},
}
"""Three rounds of 8 updates, in the middle of an epoch and of the rows of the log."""


def changing_recipe(folder: Path, model: Path, **mix: Any) -> Path:
    values = tiny_recipe(
        model,
        data={"size": 40, "held_out": 6, "stage1_share": 0.2},
        negatives={"stage1": {"dataset": 1}, "stage2": {**CHANGING, **mix}},
        stage1={"enabled": False},
        stage2={"max_steps": 8, "batch_size": 4, "micro_batch_size": 2},
        probes={"every": 4, "prompts": 3},
        evaluation={"prompts": 0},
    )
    return write_yaml(folder / "recipe.yaml", values)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> tuple[Path, Path, Any]:
    """Recipe, run directory and call of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("changing")
    recipe = changing_recipe(folder, tiny_folder("qwen2_5_vl"))
    code, call = cli_server.run("train", recipe, "--out", folder / "run", watch=folder / "run")
    assert code == 0, call.stderr
    return recipe, folder / "run", call


def texts(path: Path, source: str) -> dict[str, list[str]]:
    rows = rows_of(path)
    return {
        row["id"]: [r["text"] for r in row["responses"] if r["role"] == REJECTED and r["source"] == source]
        for row in rows
    }


def test_rounds(whole: tuple[Path, Path, Any]) -> None:
    _, run, call = whole
    rows = rows_of(run / "stage2" / "refreshes.jsonl")
    assert [row["step"] for row in rows] == [3, 6]
    assert len({row["policy"] for row in rows}) == 2
    folder = run / "negatives" / "stage2"
    for source in ("sample", "perturb", "other"):
        made = [texts(p / "groups.jsonl", source) for p in (folder, folder / "refresh-3", folder / "refresh-6")]
        assert all(list(one) == list(made[0]) for one in made)  # the same prompts in the same order
        if source == "sample":
            assert made[0] != made[1] != made[2]
            assert sum(map(len, made[1].values())) == rows[0]["new"]["sample"] + rows[0]["old"]
        else:
            assert made[0] == made[1] == made[2]
    for row in rows:
        assert 0 <= row["w_c_before"] <= 1 and 0 <= row["w_c_after"] <= 1
        said = f"mean w_c of on-policy negatives {row['w_c_before']:.3f} before, {row['w_c_after']:.3f} after"
        assert said in " ".join(call.stderr.split()) + " ".join(call.stdout.split())
    assert [row["step"] for row in rows_of(run / "stage2" / "probes.jsonl")] == [0, 4, 8]
    assert [row["step"] for row in rows_of(run / "stage2" / "metrics.jsonl") if "loss" in row] == [1, 2, 4, 6, 8]
    assert not (run / "stage2" / "checkpoints").exists()


@pytest.mark.slow
def test_killed_in_any_round(tmp_path: Path, whole: tuple[Path, Path, Any], cli_server: CliServer) -> None:
    recipe, want, call = whole
    chance, run, struck = random.Random(0), tmp_path / "run", list[str]()
    while True:
        moment = chance.randint(1, call.events // 3)
        code, killed = cli_server.run("train", recipe, "--out", run, kill_at=moment, watch=run)
        if code == 0:
            break
        assert code == -signal.SIGKILL, killed.stderr
        struck.append(step_of(killed.event.split(" ")[1]))
        assert len(struck) < 60
    assert len(struck) >= 3, struck
    assert_same_run(want, run)


@pytest.mark.parametrize("file", ["sample.jsonl", "logps-"])
@pytest.mark.slow
def test_killed_in_the_middle_of_a_refresh(
    file: str, tmp_path: Path, whole: tuple[Path, Path, Any], cli_server: CliServer
) -> None:
    recipe, want, _ = whole
    run = tmp_path / "run"
    for number in (3, 6):
        code, killed = cli_server.run(
            "train", recipe, "--out", run, kill_on=f"negatives/stage2/refresh-{number}/{file}", watch=run
        )
        assert code == -signal.SIGKILL, killed.stderr
        assert (run / "negatives" / "stage2" / f"refresh-{number}").is_dir()
        assert len(rows_of(run / "stage2" / "refreshes.jsonl") if number > 3 else []) == (number > 3)
    code, call = cli_server.run("train", recipe, "--out", run)
    assert code == 0, call.stderr
    assert_same_run(want, run)


@pytest.mark.slow
def test_rounds_of_adapters(tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]) -> None:
    """The adapters of the moment write, and a kill in the middle changes nothing."""
    recipe = changing_recipe(tmp_path, tiny_folder("qwen2_5_vl"))
    change = ("--set", "model.lora={r: 2, alpha: 4, dropout: 0.1}", "--set", "stage2.learning_rate=0.1")
    for name in ("whole", "killed"):
        if name == "killed":
            kill: Any = {"kill_on": "negatives/stage2/refresh-6/sample.jsonl", "watch": tmp_path / name}
            code, call = cli_server.run("train", recipe, "--out", tmp_path / name, *change, **kill)
            assert code == -signal.SIGKILL, call.stderr
        code, call = cli_server.run("train", recipe, "--out", tmp_path / name, *change)
        assert code == 0, call.stderr
    rows = rows_of(tmp_path / "whole" / "stage2" / "refreshes.jsonl")
    assert [row["step"] for row in rows] == [3, 6] and len({row["policy"] for row in rows}) == 2
    folder = tmp_path / "whole" / "negatives" / "stage2"
    made = [texts(p / "groups.jsonl", "sample") for p in (folder, folder / "refresh-3", folder / "refresh-6")]
    assert made[0] != made[1] != made[2]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_refreshed_when_negatives_have_gone_easy(
    tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    # a random model gives about 1/500 to every token: w_c = σ(−6.2 + 3) is below a half from the start
    path = changing_recipe(
        tmp_path,
        tiny_folder("qwen2_5_vl"),
        schedule=[],
        candidates=0,
        curriculum="uniform",
        dataset=0,
        sample=1,
        refresh={"below": 0.5, "wait": 3},
    )
    code, call = cli_server.run("train", path, "--out", tmp_path / "run")
    assert code == 0, call.stderr
    # rows of the log are at 1, 2, 4, 6, 8; three updates after the start, then three after the refresh; 8 is the end
    assert [row["step"] for row in rows_of(tmp_path / "run" / "stage2" / "refreshes.jsonl")] == [4]


REFRESH = "negatives.stage2.refresh={every: 5}"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["negatives.stage2.curriculum=frontier"], "negatives.stage2.candidates"),
        ([REFRESH], "share above 0"),
        (["negatives.stage2.refresh={wait: 5}", "negatives.stage2.beam=1"], "every .* or below"),
        (["negatives.stage2.refresh.evry=5"], "`every`"),
        ([REFRESH, "negatives.stage2.beam=1", "data.group_by_length=true"], "data.group_by_length"),
        ([REFRESH, "negatives.stage2.beam=1", "probes.early_stop={}"], "early_stop"),
        (
            ["negatives.stage2.candidates=2", "negatives.stage2.curriculum=frontier", "stage2.reference=live"],
            "stage2.reference: cached",
        ),
        (
            [REFRESH, "negatives.stage2.beam=1", "negatives.stage2.generator={base_urls: [http://a/v1], model: m}"],
            "generator.base_urls",
        ),
        (["negatives.stage1.curriculum=frontier"], "curriculum"),
    ],
)
def test_what_does_not_go_together(changes: list[str], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        load_recipe(None, changes)
