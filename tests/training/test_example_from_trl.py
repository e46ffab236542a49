"""The example that shows the move from TRL runs with both trainers."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from tiny_training import rows, trl_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "from_trl.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("from_trl", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("trainer", ["trl", "cwdpo"])
def test_both_trainers(trainer: str, tmp_path: Path, tiny_folder: Any) -> None:
    """Same model, same data: both start at log 2, get below it, and save a model for plain transformers."""
    if trainer == "trl":
        pytest.importorskip("trl")
    trl_rows(rows(8, tmp_path, images=1)).save_to_disk(tmp_path / "data")
    line = ["--trainer", trainer, "--model", str(tiny_folder("llava")), "--data", str(tmp_path / "data")]
    made = example().main([*line, "--out", str(tmp_path / "run"), "--steps", "3", "--learning-rate", "1e-3"])
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0]
    assert "rewards/margins" in made.state.log_history[0]
    assert ("cooling/weight" in made.state.log_history[0]) == (trainer == "cwdpo")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "run")


def test_files(tmp_path: Path) -> None:
    """Parquet and JSON files, as TRL's users have them."""
    table = trl_rows(rows(2, tmp_path, images=1))
    table.to_parquet(tmp_path / "rows.parquet")
    read = example().read
    assert read(str(tmp_path / "rows.parquet"))[0]["prompt"] == table[0]["prompt"]
    table.remove_columns("images").to_json(tmp_path / "rows.jsonl")
    assert len(read(str(tmp_path / "rows.jsonl"))) == 2
