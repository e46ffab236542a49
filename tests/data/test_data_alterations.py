"""Altered images: what they keep, that they depend on the seed alone, and that they are other content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwdpo.data.alterations import Alteration
from cwdpo.data.images import image_size, open_image
from cwdpo.data.schema import ImageRef


def picture(width: int = 80, height: int = 48) -> Image.Image:
    """Every pixel tells its place: red is the column, green the row."""
    grid = np.zeros((height, width, 3), np.uint8)
    grid[..., 0], grid[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return Image.fromarray(grid)


@pytest.mark.parametrize("kind", ["crop", "blank", "mask"])
def test_size_stays_and_the_seed_decides(kind: str) -> None:
    whole = picture()
    one, again, other = (Alteration(kind, seed).apply(whole) for seed in ("0/a/0", "0/a/0", "0/b/0"))
    assert one.size == whole.size and one.mode == "RGB"
    assert one.tobytes() == again.tobytes()
    assert (one.tobytes() == other.tobytes()) == (kind == "blank")
    assert whole.tobytes() == picture().tobytes()  # the original is left alone


def test_crops_keep_1_to_20_percent_of_the_area() -> None:
    """The enlarged part is linear in the place: its extent is the range of columns times that of rows."""
    shares: list[float] = []
    for i in range(200):
        pixels = np.asarray(Alteration("crop", str(i)).apply(picture(200, 160))).astype(int)
        columns, rows = np.ptp(pixels[..., 0]) + 1, np.ptp(pixels[..., 1]) + 1
        assert 0.6 < columns / rows < 1.7  # 3:4 to 4:3, up to whole pixels
        shares.append(columns * rows / (200 * 160))
    assert 0.005 < min(shares) < 0.03 and 0.15 < max(shares) < 0.22


def test_a_mask_covers_19_of_64_cells() -> None:
    """.3 · 64 = 19.2; the rest is what it was. 80 × 48 pixels are cells of 10 × 6."""
    pixels = np.asarray(Alteration("mask", "x").apply(picture()))
    grey = (pixels == 127).all(-1)
    assert grey.sum() == 19 * 60
    assert (pixels[~grey] == np.asarray(picture())[~grey]).all()


def test_blank_is_grey() -> None:
    assert set(Alteration("blank").apply(picture()).get_flattened_data()) == {(127, 127, 127)}


def test_tiny_pictures() -> None:
    for kind in ("crop", "blank", "mask"):
        assert Alteration(kind, "s").apply(picture(1, 3)).size == (1, 3)


def test_a_reference_carries_the_alteration(tmp_path: Path) -> None:
    """Another digest for another alteration, the same size, and the altered pixels when it is opened."""
    picture().save(tmp_path / "a.png")
    plain = ImageRef(path=str(tmp_path / "a.png"))
    changes = [None, Alteration("crop", "1"), Alteration("crop", "2"), Alteration("blank")]
    refs = [ImageRef(path=plain.path, altered=change) for change in changes]
    assert len({ref.digest() for ref in refs}) == 4
    assert refs[0].digest() == plain.digest()
    assert all(image_size(ref) == (80, 48) for ref in refs)
    assert open_image(refs[1]).tobytes() == Alteration("crop", "1").apply(picture()).tobytes()
