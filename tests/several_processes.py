"""What tests of several processes share: which are slow, how two runs differ, and waiting for a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tiny_runs import CliServer, rows_of

Runs = Callable[..., Path]
"""Gives the directory of a whole run of so many processes, which may share the weights too."""

SLOW = pytest.mark.slow


def whole_runs(server: CliServer, new_folder: Callable[[], Path]) -> Runs:
    """Return what gives the directory of a recipe's whole run by `ranks` processes, made once."""
    made: dict[tuple[Path, int, str], Path] = {}

    def run(recipe: Path, ranks: int, sharding: str = "") -> Path:
        key = (recipe, ranks, sharding)
        if key not in made:
            folder = new_folder() / f"of-{ranks}"
            call = server.start("train", recipe, "--out", folder, ranks=ranks, sharding=sharding)
            assert call.codes() == [0] * ranks, call.stderr
            made[key] = folder
        return made[key]

    return run


def logged_values(one: Path, other: Path) -> Iterator[tuple[str, float, float]]:
    """Yield what two runs logged: where it stands, and the value in each."""
    for name in ("stage1/metrics.jsonl", "stage2/metrics.jsonl"):
        if not (one / name).exists():
            continue
        for row, twin in zip(rows_of(one / name), rows_of(other / name), strict=True):
            assert row.keys() == twin.keys()
            for key, value in row.items():
                # Where policy and reference are the same, the sign of a margin is rounding. `epoch` counts
                # micro-batches, of which one process makes more.
                rounding = key == "rewards/accuracies" and abs(row["rewards/margins"]) < 1e-5
                if not rounding and key != "epoch":
                    yield f"{name} step {row['step']} {key}", value, twin[key]


def difference(value: float, other: float) -> float:
    """Return how far two values are from one another, relative to the first, or to 1 where it is smaller."""
    return abs(value - other) / max(abs(value), 1)


def differences(one: Path, other: Path) -> list[str]:
    """Return what two runs logged differently by more than 1e-5."""
    return [f"{where}: {a} {b}" for where, a, b in logged_values(one, other) if difference(a, b) > 1e-5]


def one_error(stderr: str) -> str:
    """Return the only error that all processes together told."""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    return errors[0]


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.002)
