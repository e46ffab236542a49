"""A run that is killed again and again on a disk that is full again and again: bitwise the same end.

The disk is a tmpfs, which only root can mount. `CWDPO_KILLS=50 pytest tests/pipeline/test_full_disk.py -m slow` asks
for so many kills, and from 50 on for a full disk at every kind of file.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import Call, CliServer, assert_same_run, step_of, tiny_recipe, write_yaml

KILLS = int(os.environ.get("CWDPO_KILLS", "8"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def whole(
    disk: Path, tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> tuple[Path, Path, int]:
    """A recipe, its run on another disk, and how often that touched its files."""
    folder = tmp_path_factory.mktemp("whole")
    model = {"vision_cache_folder": str(disk / "features")}
    values = tiny_recipe(tiny_folder("qwen2_5_vl"), model=model, stage1={"max_steps": 6}, stage2={"max_steps": 6})
    values["negatives"]["stage2"] = {**values["negatives"]["stage2"], "refresh": {"every": 3}}
    recipe = write_yaml(folder / "recipe.yaml", values)
    code, call = cli_server.run("train", recipe, "--out", folder / "run", watch=folder / "run")
    assert code == 0, call.stderr
    return recipe, folder / "run", call.events


def require_one_line(call: Call, disk: Path) -> None:
    """The call ended because the disk is full: it names a file or folder there, and says what to do."""
    last = call.stderr.splitlines()[-1]
    assert call.wait() == 2 and "Traceback" not in call.stderr, call.stderr[-2000:]
    assert re.match(rf"error: {re.escape(str(disk))}/\S+: ", last), last
    assert re.search("(?i)no space left|is full", last) and "room" in last and "the same command again" in last, last


PLACES = {
    "data": "data/stage1.jsonl",
    "rows": "rows.sqlite",
    "pictures": "data/scenes/images",
    "negatives": "negatives/stage1/beam.jsonl",
    "groups": "negatives/stage2/groups.jsonl",
    "refresh": "negatives/stage2/refresh-3/sample.jsonl",
    "metrics": "stage1/metrics.jsonl",
    "probes": "stage2/probes.jsonl",
    "checkpoint": "stage1/checkpoints/checkpoint-2",
    "seal": "stage2/checkpoints/checkpoint-4/complete.json",
    "model": "stage1/model",
    "reference": "reference/logps.sqlite",
    "captions": "evaluation/captions_before.jsonl",
    "list": "cwdpo.jsonl",
    "report": "report.html",
}
"""Files and folders of a run at whose writing the disk is full."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", PLACES if KILLS >= 50 else ("rows", "refresh", "metrics", "checkpoint", "model", "reference")
)
def test_full_when(place: str, disk: Path, whole: tuple[Path, Path, int], cli_server: CliServer) -> None:
    recipe, wanted, _ = whole
    run, ballast = disk / place, disk / "ballast"
    where: dict[str, Any] = {"kill_on": PLACES[place], "watch": run}
    code, call = cli_server.run("train", recipe, "--out", run, fill=ballast, **where)
    assert ballast.exists(), f"{place} was never written"
    require_one_line(call, disk)
    code, call = cli_server.run("train", recipe, "--out", run)  # still full
    require_one_line(call, disk)
    ballast.unlink()
    code, call = cli_server.run("train", recipe, "--out", run)
    assert code == 0, call.stderr
    assert_same_run(wanted, run)


@pytest.mark.slow
@pytest.mark.timeout(120 + 30 * KILLS)
def test_kills_and_full_disks(disk: Path, whole: tuple[Path, Path, int], cli_server: CliServer) -> None:
    """Every third fault is a full disk, with more or less room left; kills strike at a file or at any time."""
    recipe, wanted, events = whole
    chance, ballast = random.Random(KILLS), disk / "ballast"
    killed, full, runs, steps = 0, 0, 0, set[str]()
    while killed < KILLS:
        run, runs = disk / f"killed-{runs}", runs + 1
        while True:
            moment = chance.randint(1, max(8, events // 6))
            how: dict[str, Any] = {"watch": run, "kill_at": moment}
            fills, waits = chance.random() < 1 / 3, chance.random() < 1 / 2
            if fills:
                how |= {"fill": ballast, "spare": chance.choice([0, 0, chance.randint(0, 300_000)])}
            elif waits:
                how = {}
            call = cli_server.start("train", recipe, "--out", run, **how)
            if not fills and waits:
                _wait(call, chance.uniform(0.1, 4))
            code = call.wait()
            steps |= {step_of(call.event.split(" ")[1])} if how and code else set()
            if fills and code:
                require_one_line(call, disk)
                full += 1
            elif code == -signal.SIGKILL:
                killed += 1
            else:
                assert code == 0, call.stderr
            ballast.unlink(missing_ok=True)
            if code == 0 and not fills:
                break
            if code == 0:  # it had room enough, or only features were not kept
                code, call = cli_server.run("train", recipe, "--out", run)
                assert code == 0, call.stderr
                break
        assert_same_run(wanted, run)
        subprocess.run(["rm", "-rf", run], check=True)
    print(f"{killed} kills and {full} full disks over {runs} runs, in {', '.join(sorted(steps))}")
    assert full >= KILLS // 6 and len(steps) >= min(5, KILLS // 2), (full, steps)


def _wait(call: Call, seconds: float) -> None:
    """Kill a call after a time, if it is still at work."""
    time.sleep(seconds)
    call.signal(signal.SIGKILL)
