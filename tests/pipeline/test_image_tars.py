"""A run on image tars: killed while data is read and in the middle of an epoch, it ends as one that was not."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tiny_runs import CliServer, assert_same_run, tiny_recipe, write_yaml

ROWS = 24
COLOURS = ("red", "green", "blue", "grey", "white", "black")


def write_shards(folder: Path) -> str:
    """Write two tars with a dozen samples each, no two pictures equal; return their pattern."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for i in range(shard * ROWS // 2, (shard + 1) * ROWS // 2):
                buffer = io.BytesIO()
                Image.new("RGB", (56, 56), (i * 10, 255 - i * 10, 90)).save(buffer, format="PNG")
                text = f"A {COLOURS[i % 6]} square"
                row = {"prompt": "What is it?", "chosen": f"{text}.", "rejected": f"{text} above a star."}
                for ending, content in (("png", buffer.getvalue()), ("json", json.dumps(row).encode())):
                    info = tarfile.TarInfo(f"{i:06}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder / "train-{000..001}.tar")


def _run(server: CliServer, recipe: Path, run: Path, **settings: Any) -> tuple[int, str]:
    code, call = server.run("train", recipe, "--out", run, **settings)
    return code, call.stderr


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_an_epoch(tmp_path: Path, cli_server: CliServer, workers: int) -> None:
    """Thirteen rows of Stage 1 are six updates and a half: update 5 is in the middle of the first epoch."""
    stage = {"max_steps": 9, "batch_size": 2, "micro_batch_size": 1, "save_steps": 1}
    recipe = tiny_recipe(
        "scenes",
        data={"path": write_shards(tmp_path / "shards"), "held_out": 4, "stage1_share": 0.65, "workers": workers},
        stage1=stage,
        stage2={**stage, "max_steps": 3},
    )
    recipe["negatives"] = {"stage1": {"dataset": 1}, "stage2": {"dataset": 1, "other": 1}}
    recipe["probes"], recipe["evaluation"] = {"every": 0}, {"prompts": 0}
    path = write_yaml(tmp_path / "recipe.yaml", recipe)
    shards = {p: p.read_bytes() for p in (tmp_path / "shards").iterdir()}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli_server.run("train", path, "--out", whole)[0] == 0
    counts = json.loads((whole / "data" / "done.json").read_text())["counts"]
    assert counts == {"stage1": 13, "stage2": 7, "held_out": 4}
    for moment in (
        {"kill_on": "data/stage1.jsonl"},
        {"kill_on": "checkpoint-5/complete.json"},
    ):
        code, said = _run(cli_server, path, killed, watch=killed, **moment)
        assert code == -9, said
    code, said = _run(cli_server, path, killed)
    assert code == 0, said
    assert_same_run(whole, killed)
    assert not list(killed.rglob("*.png"))
    assert {p: p.read_bytes() for p in (tmp_path / "shards").iterdir()} == shards
