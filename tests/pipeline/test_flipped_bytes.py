"""One byte changed in any one file of a stopped run: rebuilt, or refused in one line, never another result."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_runs import CliServer, assert_same_run, tiny_recipe, write_yaml


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files_to_flip(run: Path, stage: str) -> list[str]:
    """One file of each kind that is not empty: names that differ by a number alone are of one kind; the newest counts.

    Those outside of a stage are taken with Stage 2 only.
    """
    found = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.stat().st_size)
    found = [name for name in found if stage == "stage2" or name.startswith(f"{stage}/")]
    kinds = {"picture" if name.endswith(".png") else re.sub(r"\d+", "#", name): name for name in found}
    return list(kinds.values())


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> tuple[Path, Path]:
    """A recipe and its run."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_yaml(folder / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl"), data={"size": 24}))
    code, call = cli_server.run("train", recipe, "--out", folder / "run")
    assert code == 0, call.stderr
    return recipe, folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_one_byte(stage: str, whole: tuple[Path, Path], tmp_path: Path, cli_server: CliServer) -> None:
    recipe, wanted = whole
    stopped, run = tmp_path / "stopped", tmp_path / "run"
    moment = f"{stage}/checkpoints/checkpoint-4/trainer_state.json"
    code, call = cli_server.run("train", recipe, "--out", run, kill_on=moment, watch=run)
    assert code == -signal.SIGKILL, call.stderr
    run.rename(stopped)
    wrong: list[str] = []
    for name in files_to_flip(stopped, stage):
        shutil.copytree(stopped, run)
        flipped(run / name)
        code, call = cli_server.run("train", recipe, "--out", run)
        said = call.stderr.splitlines()
        if code == 0:
            try:
                assert_same_run(wanted, run)
            except (AssertionError, ValueError) as error:
                wrong.append(f"{name}: another result ({str(error).splitlines()[0] if str(error) else error!r})")
        elif code != 2 or not said[-1].startswith("error: ") or "Traceback" in call.stderr:
            wrong.append(f"{name}: exit {code}, {said[-1:]}")
        shutil.rmtree(run)
    assert not wrong, "\n".join(wrong)
