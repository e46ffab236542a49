"""Scenes of the embedded world: what stands where, drawn from a seed, and which split a scene belongs to."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cwdpo.errors import DataError, one_line

__all__ = ["COLOURS", "GRID", "JITTER", "KINDS", "RELATIONS", "SIZES", "SPLITS", "Scene", "Shape", "sample_scene"]

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
KINDS = ("circle", "square", "triangle", "diamond", "cross")
SIZES = ("small", "large")
RELATIONS = ("left", "right", "above", "below")

GRID = 4
"""Columns and rows of the grid that shapes stand on, one shape a cell."""

JITTER = 1
"""Largest shift of a shape from the middle of its cell, pixels, in either direction."""

SPLITS: Mapping[str, range] = {
    "base": range(0, 40),
    "train": range(40, 70),
    "validation": range(70, 85),
    "test": range(85, 100),
}
"""Hash buckets (of 100) of each split. The shipped base saw `base` only."""


@dataclass(frozen=True)
class Shape:
    """One coloured shape.

    Attributes:
        kind: One of `KINDS`.
        colour: One of `COLOURS`.
        size: One of `SIZES`.
        column: Cell of the grid, 0 is leftmost.
        row: Cell of the grid, 0 is topmost.
        dx: Shift from the middle of the cell, pixels; no part of the meaning.
        dy: As `dx`, downwards.
    """

    kind: str
    colour: str
    size: str
    column: int
    row: int
    dx: int = 0
    dy: int = 0

    def __post_init__(self) -> None:
        shifts = range(-JITTER, JITTER + 1)
        if not (
            self.kind in KINDS
            and self.colour in COLOURS
            and self.size in SIZES
            and self.column in range(GRID)
            and self.row in range(GRID)
            and self.dx in shifts
            and self.dy in shifts
        ):
            raise DataError(one_line(f"no shape of this world: {asdict(self)}"))

    def stands(self, relation: str, other: Shape) -> bool:
        """Tell whether this shape is `relation` (one of `RELATIONS`) the other: by cells, a diagonal holds two."""
        return {
            "left": self.column < other.column,
            "right": self.column > other.column,
            "above": self.row < other.row,
            "below": self.row > other.row,
        }[relation]


@dataclass(frozen=True)
class Scene:
    """Two or three shapes in different cells, no two alike in both colour and kind."""

    shapes: tuple[Shape, ...]

    def __post_init__(self) -> None:
        cells = {(s.column, s.row) for s in self.shapes}
        looks = {(s.colour, s.kind) for s in self.shapes}
        if len(self.shapes) not in (2, 3) or len(cells) < len(self.shapes) or len(looks) < len(self.shapes):
            raise DataError(
                f"no scene of this world: {len(self.shapes)} shapes in {len(cells)} cells with {len(looks)} looks; "
                "two or three shapes, each in its own cell and with its own colour and kind, make a scene"
            )

    def canonical(self) -> str:
        """Return what the scene is, without jitter and without order; equal strings are equal scenes."""
        keys = sorted([s.row, s.column, s.size, s.colour, s.kind] for s in self.shapes)
        return json.dumps(keys, separators=(",", ":"))

    def split(self) -> str:
        """Return the one split of `SPLITS` that this scene belongs to, by a hash of `canonical()`."""
        bucket = int.from_bytes(hashlib.sha256(self.canonical().encode()).digest()[:8], "big") % 100
        return next(name for name, buckets in SPLITS.items() if bucket in buckets)

    def to_json(self) -> dict[str, Any]:
        """Return the scene as plain JSON values; `from_json` reads it back."""
        return {"shapes": [asdict(shape) for shape in self.shapes]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scene:
        """Read what `to_json` wrote.

        Raises:
            DataError: The value is no scene.
        """
        try:
            return cls(tuple(Shape(**shape) for shape in value["shapes"]))
        except (KeyError, TypeError) as error:
            raise DataError(
                one_line(f"facts hold no scene ({type(error).__name__}: {error}); write them with Scene.to_json")
            ) from error


def sample_scene(rng: random.Random, split: str, three: float = 0.25) -> Scene:
    """Draw a scene of one split.

    Args:
        rng: Source of all chance.
        split: One of `SPLITS`. Scenes of other splits are drawn again, so two splits share no scene.
        three: Probability of three shapes instead of two, before the split is looked at.

    Raises:
        DataError: There is no such split.
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r} in the embedded world; it is one of {', '.join(SPLITS)}")
    while True:
        count = 3 if rng.random() < three else 2
        cells = rng.sample(range(GRID * GRID), count)
        looks = rng.sample(range(len(COLOURS) * len(KINDS)), count)
        scene = Scene(
            tuple(
                Shape(
                    kind=KINDS[look % len(KINDS)],
                    colour=COLOURS[look // len(KINDS)],
                    size=rng.choice(SIZES),
                    column=cell % GRID,
                    row=cell // GRID,
                    dx=rng.randint(-JITTER, JITTER),
                    dy=rng.randint(-JITTER, JITTER),
                )
                for cell, look in zip(cells, looks, strict=True)
            )
        )
        if scene.split() == split:
            return scene
