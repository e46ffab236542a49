"""The example for users of TRL reads what they have; `tests/docs/test_ways_in.py` runs it with both trainers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tiny_training import rows, trl_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "from_trl.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("from_trl", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files(tmp_path: Path) -> None:
    """Parquet and JSON files, as TRL's users have them."""
    table = trl_rows(rows(2, tmp_path, images=1))
    table.to_parquet(tmp_path / "rows.parquet")
    read = example().read
    assert read(str(tmp_path / "rows.parquet"))[0]["prompt"] == table[0]["prompt"]
    table.remove_columns("images").to_json(tmp_path / "rows.jsonl")
    assert len(read(str(tmp_path / "rows.jsonl"))) == 2
