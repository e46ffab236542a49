"""Small pictures and files in the spelling of each tool."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

COLOURS = {"red.png": (255, 0, 0), "green.png": (0, 255, 0), "blue.jpg": (0, 0, 255)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures in `images/`; data files go beside it."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (12, 8), colour).save(folder / "images" / name)
    return folder


@pytest.fixture
def jsonl() -> Callable[[Path, list[Any]], Path]:
    """Write rows as JSON lines; a text is a line as it stands."""

    def write(path: Path, rows: list[Any]) -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write
