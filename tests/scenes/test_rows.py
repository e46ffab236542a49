"""Data sets: whole, repeatable, disjoint, and what their rows say is true of their pictures."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwdpo.errors import DataError
from cwdpo.scenes import scene_rows as rows_module
from cwdpo.scenes.drawing import BACKGROUND, render
from cwdpo.scenes.grammar import PROMPT, count_errors, is_correct, parse
from cwdpo.scenes.scene_rows import sample_scenes, write_rows
from cwdpo.scenes.world import KINDS, SPLITS, Scene, Shape
from tiny_runs import rows_of


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_rows(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 40, seed=3, split="train")
    written = rows_of(tmp_path / "train.jsonl")
    assert written == rows
    assert len({row["id"] for row in rows}) == 40
    for row in rows:
        scene = Scene.from_json(row["facts"]["scene"])
        assert scene.split() == row["facts"]["split"] == "train"
        with Image.open(tmp_path / row["images"][0]) as picture:
            assert picture.size == (64, 64)
            assert (np.asarray(picture) == np.asarray(render(scene))).all()
        chosen, *rejected = row["responses"]
        assert chosen["role"] == "chosen"
        assert is_correct(chosen["text"], scene)
        assert [(r["role"], r["difficulty"]) for r in rejected] == [
            ("rejected", "hard"),
            ("rejected", "medium"),
            ("rejected", "easy"),
        ]
        errors = [count_errors(meaning, scene) for r in rejected if (meaning := parse(r["text"])) is not None]
        assert errors[:2] == [1, 2]
        assert errors[2] >= 4
        assert row["references"][0] == chosen["text"]
        assert len(set(row["references"])) == 5
        assert all(is_correct(text, scene) for text in row["references"])
        (message,) = row["prompt"]
        assert message == {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}


def test_same_seed_same_bytes_and_a_prefix(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "one", 12, seed=0, split="test")
    again = write_rows(tmp_path / "two", 5, seed=0, split="test")
    assert [row["responses"] for row in again] == [row["responses"] for row in rows[:5]]
    write_rows(tmp_path / "two", 12, seed=0, split="test")
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert one == two
    assert len(one) == 12 + 1
    other = write_rows(tmp_path / "three", 12, seed=1, split="test")
    assert [row["facts"] for row in other] != [row["facts"] for row in rows]


def test_a_killed_run_is_taken_up(tmp_path: Path) -> None:
    write_rows(tmp_path, 6, seed=0, split="train")
    whole = digests(tmp_path)
    pictures = sorted((tmp_path / "images").iterdir())
    pictures[0].unlink()
    pictures[1].write_bytes(pictures[1].read_bytes()[:50])
    (tmp_path / "train.jsonl").unlink()
    kept = pictures[2].stat().st_mtime_ns
    write_rows(tmp_path, 6, seed=0, split="train")
    assert digests(tmp_path) == whole
    assert pictures[2].stat().st_mtime_ns == kept


def test_splits_share_no_scene_and_none_repeats() -> None:
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        scenes = [scene.canonical() for scene in itertools.islice(sample_scenes(split, seed=0), 1500)]
        assert len(set(scenes)) == 1500
        seen[split] = set(scenes)
    for one, two in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[two]


def test_a_split_that_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 417,600 scenes of two shapes (30 x 29 looks, 120 pairs of cells, 4 sizes) `test` holds about 15 %."""
    monkeypatch.setattr(rows_module, "_REPEATS", 2)
    with pytest.raises(DataError, match="ask for fewer rows"):
        list(itertools.islice(sample_scenes("test", seed=0, three=0.0), 70_000))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ask for 1 or more"):
        write_rows(tmp_path, 0, seed=0, split="train")
    with pytest.raises(DataError, match="it is one of base, train, validation, test"):
        write_rows(tmp_path, 1, seed=0, split="dev")


def pure(scene: Scene, rgb: tuple[int, int, int]) -> int:
    return int((np.asarray(render(scene)) == rgb).all(-1).sum())


RED, BLUE = (220, 30, 30), (40, 70, 220)


def test_rendered_colours_and_extent() -> None:
    """A large square around (24, 24), half-wide .85 x 6.5 = 5.5 px, covers 18.5 to 29.5: 11 whole pixels a side, less
    what the soft edge takes."""
    red = Shape("square", "red", "large", column=1, row=1)
    scene = Scene((red, Shape("circle", "blue", "small", column=2, row=2)))
    pixels = np.asarray(render(scene))
    assert tuple(pixels[24, 24]) == RED
    # Red fades from left to right, blue from top to bottom, 64 levels about the mean.
    assert tuple(pixels[0, 0]) == (255, 235, 255)
    assert tuple(pixels[-1, -1]) == (192, 235, 192)
    empty = np.concatenate([pixels[:, :16], pixels[:, 48:]], axis=1)
    assert np.abs(empty.mean((0, 1)) - np.asarray(BACKGROUND)).max() < 2
    assert 10**2 <= pure(scene, RED) <= 11**2


@pytest.mark.parametrize("kind", KINDS)
def test_no_shape_leaves_the_picture(kind: str) -> None:
    """The middle of the first cell is 8 px from the border, the largest reach 6.5 x 1.05 + 1 = 7.8 px."""
    for column, dx in ((0, -1), (3, 1)):
        corner = Shape(kind, "red", "large", column, column, dx, dx)
        inside = Shape(kind, "red", "large", 1, 2, dx, dx)
        far = Shape("circle", "blue", "small", 3, 0)
        assert pure(Scene((corner, far)), RED) == pure(Scene((inside, far)), RED) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_do_not_cover_each_other(kind: str) -> None:
    """Cells are 16 px wide; drawn towards each other the middles are 14 px apart, and twice the reach is 13.7."""
    for dx, dy in ((1, 0), (0, 1)):
        left = Shape(kind, "red", "large", 0, 0, dx, dy)
        right = Shape(kind, "blue", "large", int(dx > 0), int(dy > 0), -dx, -dy)
        far = Shape("circle", "green", "small", 2, 2)
        assert pure(Scene((left, right)), RED) == pure(Scene((left, far)), RED)
        assert pure(Scene((left, right)), BLUE) == pure(Scene((right, far)), BLUE)
