"""What a recipe names by path is what it was when a step began, or the run is refused; checked on bare folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cwdpo.errors import RunError
from cwdpo.models.identity import folder_digest, hub_revision
from cwdpo.recipe import Recipe
from cwdpo.run.run_dir import RunDirectory

METHOD = """
from cwdpo.methods.dpo import DPO

class Mine(DPO):
    name = "mine"
"""


def _model(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    name = "adapter" if "base_model_name_or_path" in settings else "config"
    (folder / ("adapter_config.json" if name == "adapter" else "config.json")).write_text(json.dumps(settings))
    (folder / ("adapter_model.safetensors" if name == "adapter" else "model.safetensors")).write_bytes(bytes(100))
    return folder


def _settled(folder: Path, values: dict[str, Any]) -> None:
    run = RunDirectory(folder, Recipe.model_validate({"name": "named", **values}))
    with run.locked():
        run.settle()


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe that names an adapter, another model and files of the user's."""
    monkeypatch.chdir(tmp_path)
    base, teacher = _model(tmp_path / "base"), _model(tmp_path / "teacher")
    adapter = _model(tmp_path / "adapter", base_model_name_or_path=str(base))
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "probes.jsonl").write_text("{}\n")
    correction = {"by": "exact", "model": str(teacher)}
    return {
        "model": {"path": str(adapter)},
        "stage2": {"objective": "mine.py:Mine"},
        "negatives": {"correction": correction},
        "probes": {"path": str(tmp_path / "probes.jsonl")},
    }


@pytest.mark.parametrize(
    ("file", "step", "key"),
    [
        ("adapter/adapter_model.safetensors", "correction", "model.path"),
        ("adapter/adapter_config.json", "stage1", "model.path"),
        ("base/model.safetensors", "stage1", "model.path"),
        ("teacher/model.safetensors", "correction", "negatives.correction.model"),
        ("mine.py", "stage2", "stage2.objective"),
        ("probes.jsonl", "stage1", "probes.path"),
    ],
)
def test_one_byte_of_what_is_named(file: str, step: str, key: str, named: dict[str, Any], tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / file
    _settled(run, named)
    (run / step).mkdir()
    _settled(run, named)
    whole = path.read_bytes()
    _flipped(path) if path.suffix == ".safetensors" else path.write_bytes(whole + b"\n")
    with pytest.raises(RunError, match=rf"\({re.escape(key)}\) has changed since the step {step}; put it back"):
        _settled(run, named)
    path.write_bytes(whole)
    _settled(run, named)


def test_a_file_that_no_begun_step_reads_may_change(named: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    _settled(run, named)
    (run / "stage1").mkdir()
    (tmp_path / "mine.py").write_text(METHOD + "    beta: float = 0.2\n")
    _settled(run, named)


def test_an_adapter_counts_with_its_base(tmp_path: Path) -> None:
    base = _model(tmp_path / "base")
    adapter = _model(tmp_path / "adapter", base_model_name_or_path=str(base))
    before = folder_digest(adapter)
    assert folder_digest(adapter) == before != folder_digest(base)
    _flipped(base / "model.safetensors")
    assert folder_digest(adapter) != before
    itself = _model(tmp_path / "itself", base_model_name_or_path=str(tmp_path / "itself"))
    assert folder_digest(itself)


def test_the_commit_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "models--owner--name"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc" / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hub_revision("owner/name") == "abc"
    assert (
        hub_revision("owner/other") is None
        and hub_revision(str(tmp_path)) is None
        and hub_revision("no hub id at all") is None
    )
