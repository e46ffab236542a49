"""Images made worse on purpose, for losses that ask whether an answer follows from the image."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image

__all__ = ["Alteration"]

CROP_SHARE = (0.01, 0.2)
"""Least and largest share of the image's area that a crop keeps (mDPO)."""

MASKED_SHARE = 0.3
"""Share of the cells of a `GRID` × `GRID` grid that a mask covers (OPA-DPO)."""

GRID = 8
GREY = (127, 127, 127)


@dataclass(frozen=True)
class Alteration:
    """What is done to an image; its size stays, so that prompts keep their length.

    Attributes:
        kind: `crop`: a small random part, enlarged; `blank`: all grey; `mask`: random cells grey.
        seed: Fixes what is random, for every image of its own.
    """

    kind: Literal["crop", "blank", "mask"]
    seed: str = ""

    @property
    def name(self) -> str:
        """What tells it from others, for content digests."""
        return f"{self.kind} {self.seed}"

    def apply(self, picture: Image.Image) -> Image.Image:
        """Return the altered picture.

        Args:
            picture: RGB, upright.
        """
        if self.kind == "blank":
            return Image.new("RGB", picture.size, GREY)
        draw = random.Random(self.seed)
        return _crop(picture, draw) if self.kind == "crop" else _mask(picture, draw)


def _crop(picture: Image.Image, draw: random.Random) -> Image.Image:
    """Return a part of random area, shape (3:4 to 4:3) and place, at the size of the whole."""
    width, height = picture.size
    area = draw.uniform(*CROP_SHARE) * width * height
    ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
    part = [max(1, min(whole, round(side))) for whole, side in zip(picture.size, _sides(area, ratio), strict=True)]
    left, top = (draw.randint(0, whole - side) for whole, side in zip(picture.size, part, strict=True))
    box = (left, top, left + part[0], top + part[1])
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _sides(area: float, ratio: float) -> tuple[float, float]:
    return math.sqrt(area * ratio), math.sqrt(area / ratio)


def _mask(picture: Image.Image, draw: random.Random) -> Image.Image:
    """Return the picture with random cells of a grid painted grey."""
    altered = picture.copy()
    for cell in draw.sample(range(GRID * GRID), round(MASKED_SHARE * GRID * GRID)):
        (row, column), (width, height) = divmod(cell, GRID), picture.size
        left, right = column * width // GRID, (column + 1) * width // GRID
        top, bottom = row * height // GRID, (row + 1) * height // GRID
        altered.paste(GREY, (left, top, right, bottom))
    return altered
