"""What the guides tell a new user to type, typed: the commands are taken from the pages."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def told(page: str, name: str) -> list[list[str]]:
    """Return the commands of the block of a page that follows `<!-- commands: name -->`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    block = re.search(rf"<!-- commands: {re.escape(name)} -->\n```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None, f"{page} has no block {name!r}"
    return [shlex.split(line) for line in block[1].splitlines()]


def typed(command: list[str], folder: Path) -> None:
    """Run one as a user does, with this Python."""
    start = {"cwdpo": [sys.executable, "-m", "cwdpo"], "python": [sys.executable]}[command[0]]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_own_photos(tmp_path: Path) -> None:
    """A folder of JPEGs with a captions.csv: recipe, check, both stages, report, a model for plain transformers."""
    photos = tmp_path / "photos"
    photos.mkdir()
    with (photos / "captions.csv").open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle)
        table.writerow(["image", "caption"])
        for i in range(16):
            Image.effect_noise((64, 48), 20 + i).convert("RGB").save(photos / f"{i:02}.jpg")
            table.writerow([f"{i:02}.jpg", f"A large red circle left of {i} small stars."])
    commands = told("data.md", "own photos")
    assert [command[1] for command in commands] == ["init", "check", "train"]
    for command in commands:
        typed(command, tmp_path)
    assert (tmp_path / "runs" / "trial" / "report.html").stat().st_size > 10_000
    AutoModelForImageTextToText.from_pretrained(tmp_path / "runs" / "trial" / "stage2" / "model")


@pytest.mark.slow
def test_from_trl(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """Both lines of the page on eight rows in TRL's columns: both save a model."""
    pytest.importorskip("trl")
    import datasets

    pictures: list[list[str]] = []
    for i in range(8):
        Image.effect_noise((28, 28), 20 + i).convert("RGB").save(tmp_path / f"{i}.png")
        pictures.append([str(tmp_path / f"{i}.png")])
    sides = {
        "prompt": [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this ?"}]}]] * 8,
        "chosen": [[{"role": "assistant", "content": [{"type": "text", "text": "a red square"}]}]] * 8,
        "rejected": [[{"role": "assistant", "content": [{"type": "text", "text": "a star"}]}]] * 8,
    }
    made = datasets.Dataset.from_dict({"images": pictures, **sides})
    made.cast_column("images", datasets.List(datasets.Image())).save_to_disk(tmp_path / "data")
    stands_for = {"MODEL": str(tiny_folder("llava")), "DATA": str(tmp_path / "data")}
    stands_for["examples/from_trl.py"] = str(ROOT / "examples" / "from_trl.py")
    commands = told("from-others.md", "from TRL")
    assert len(commands) == 2
    for command in commands:
        typed([stands_for.get(word, word) for word in command], tmp_path)
    for name in ("dpo", "cw-dpo"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "runs" / name)


def test_the_demo_is_on_its_page() -> None:
    """The demo itself is run by tests/pipeline/test_demo.py."""
    text = (DOCS / "start.md").read_text(encoding="utf-8")
    assert ".venv/bin/cwdpo demo\n" in text
    assert "cwdpo-demo/report.html" in text
