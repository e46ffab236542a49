"""A finished run directory with damaged files: `cwdpo train` again and `cwdpo report` say so in one line, or do it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import cases, damaged, mutated
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.errors import UserError
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.report import write_report
from cwdpo.run import Run

TEXT = (".json", ".jsonl", ".yaml")


@pytest.fixture(scope="module")
def finished(rows_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a folder with a recipe, its data, and its finished run."""
    return shutil.copytree(rows_run, tmp_path_factory.mktemp("fuzzed") / "copy")


@st.composite
def _changed(draw: st.DrawFn, path: Path) -> bytes:
    """A file damaged; perhaps with other values where it is JSON."""
    content = path.read_bytes()
    if path.suffix not in (".json", ".jsonl") or draw(st.booleans()):
        return draw(damaged(content))
    lines = content.splitlines() if path.suffix == ".jsonl" else [content]
    if not lines:
        return b"[]\n"
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = json.dumps(draw(mutated(json.loads(lines[at])))).encode()
    return b"\n".join(lines) + b"\n"


def _files(home: Path) -> list[str]:
    """What fuzzing may touch: all that is not weights, pictures or the page."""
    run = home / "run"
    found = [p for p in run.rglob("*") if p.is_file() and p.suffix in (*TEXT, ".sqlite") and "model" not in p.parts]
    return sorted(str(p.relative_to(run)) for p in found)


def _asked(do: Callable[[], Any]) -> None:
    try:
        do()
    except UserError as error:
        assert "\n" not in str(error) and str(error)


def _damage_and_ask(
    finished: Path, data: st.DataObject, do: Callable[[Path], Any], again: tuple[str, ...] = ()
) -> None:
    run = finished / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished / "run", run)
    inputs = {p: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    for name in again:  # this step is to be done once more, with what the others left
        (run / name / "done.json").unlink(missing_ok=True)
    for name in data.draw(st.lists(st.sampled_from(_files(finished)), min_size=1, max_size=2, unique=True)):
        if (run / name).is_file():
            (run / name).write_bytes(data.draw(_changed(run / name)))
    _asked(lambda: do(run))
    assert {p: p.read_bytes() for p in finished.iterdir() if p.is_file()} == inputs


@given(data=st.data())
@cases(25, seconds=60)
def test_report(finished: Path, data: st.DataObject) -> None:
    _damage_and_ask(finished, data, lambda run: write_report([run], finished / "out" / "report.html"))


@given(data=st.data())
@cases(4, seconds=120)
def test_train_again(finished: Path, data: st.DataObject) -> None:
    recipe = load_recipe(finished / "recipe.yaml")
    again = data.draw(st.sampled_from([(), (), ("evaluation",), ("stage2", "evaluation")]))
    _damage_and_ask(finished, data, lambda run: Run(run, recipe).execute(), again)
