"""Data sets of the embedded world in the package's JSONL format, pictures beside them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cwdpo.errors import DataError
from cwdpo.files import write_bytes, write_jsonl
from cwdpo.scenes.drawing import png_bytes
from cwdpo.scenes.grammar import PROMPT, paraphrases
from cwdpo.scenes.scene_negatives import negative
from cwdpo.scenes.world import Scene, sample_scene

__all__ = ["REFERENCES", "sample_scenes", "write_rows"]

REFERENCES = 5
"""Gold captions of a row, as many as a COCO picture has."""

_REPEATS = 200
"""So many draws in a row that gave nothing new mean that a split is used up."""

_DIFFICULTIES = ("hard", "medium", "easy")


def sample_scenes(split: str, seed: int, three: float = 0.25) -> Iterator[Scene]:
    """Yield different scenes of a split; the same split, seed and `three` give the same scenes.

    Args:
        split: One of `world.SPLITS`.
        seed: Any integer.
        three: Probability of three shapes instead of two.

    Raises:
        DataError: The split is unknown, or nearly every scene of it has been given.
    """
    rng = random.Random(f"scenes/{split}/{seed}")
    seen: set[str] = set()
    repeats = 0
    while repeats < _REPEATS:
        scene = sample_scene(rng, split, three)
        if scene.canonical() in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(scene.canonical())
        yield scene
    raise DataError(f"split {split!r} has little more than {len(seen)} scenes with three={three:g}; ask for fewer rows")


def write_rows(folder: Path, count: int, seed: int, split: str, three: float = 0.25) -> list[dict[str, Any]]:
    """Write `count` pictures to `folder/images` and their rows to `folder/{split}.jsonl`.

    Every file is whole or absent and its bytes depend on `count`, `seed`, `split` and `three` alone: a run that was
    killed is taken up by calling again, and a smaller `count` gives the first rows of a larger one. No scene occurs
    twice, nor in two splits.

    Args:
        folder: Made if absent. It may hold several splits.
        count: Rows to write, at least 1.
        seed: Any integer.
        split: `train`, `validation` or `test`; `base` is what the shipped base has seen.
        three: Probability of three shapes instead of two.

    Returns:
        The rows: `images` holds one path relative to `folder`, `prompt` one user turn, `responses` one chosen caption
        and a hard, a medium and an easy rejected one, `references` five right captions of which the chosen is the
        first, `facts` the scene (`Scene.from_json(row["facts"]["scene"])`) and its split.

    Raises:
        DataError: `count` is below 1 or above what the split holds, or the split is unknown.
    """
    if count < 1:
        raise DataError(f"{count} rows of the embedded world asked for; ask for 1 or more")
    scenes = sample_scenes(split, seed, three)
    rows = [_write_row(folder, next(scenes), split, seed, number) for number in range(count)]
    write_jsonl(folder / f"{split}.jsonl", rows)
    return rows


def _write_row(folder: Path, scene: Scene, split: str, seed: int, number: int) -> dict[str, Any]:
    name = f"{split}-{seed}-{number:06d}"
    image = f"images/{name}.png"
    picture = folder / image
    content = png_bytes(scene)
    if not (picture.exists() and picture.read_bytes() == content):
        write_bytes(picture, content)
    rng = random.Random(f"words/{name}")
    golds = paraphrases(scene, rng, REFERENCES)
    responses = [{"text": golds[0].text, "role": "chosen", "source": "dataset"}]
    for difficulty in _DIFFICULTIES:
        text = negative(golds[0], scene, difficulty, rng).text
        responses.append({"text": text, "role": "rejected", "source": "dataset", "difficulty": difficulty})
    return {
        "id": name,
        "images": [image],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}],
        "responses": responses,
        "references": [gold.text for gold in golds],
        "facts": {"scene": scene.to_json(), "split": split},
    }
