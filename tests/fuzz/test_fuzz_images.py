"""Pictures with damaged bytes or a wrong name: an RGB picture, or an `ImageError` in one line; never more pixels."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from fuzzing import cases, damaged
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cwdpo.data.images import ImageError, ImageLimits, open_image
from cwdpo.data.schema import ImageRef

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
LIMITS = ImageLimits(max_pixels=50_000)


def _encoded(kind: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    picture = Image.effect_noise((40, 30), 60).convert(mode)
    if kind == "GIF":
        picture.save(buffer, kind, save_all=True, append_images=[picture.rotate(90)], duration=40)
    else:
        picture.save(buffer, kind, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    return buffer.getvalue()


ENCODED = {kind: _encoded(kind, "RGB") for kind in KINDS}
ENCODED["palette"] = _encoded("PNG", "P")
ENCODED["grey"] = _encoded("JPEG", "L")


def opened(ref: ImageRef) -> None:
    try:
        picture = open_image(ref, LIMITS)
    except ImageError as error:
        assert "\n" not in str(error) and error.kind
        return
    assert picture.mode == "RGB" and 1 <= picture.width * picture.height <= LIMITS.max_pixels
    picture.tobytes()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it passes over
@pytest.mark.parametrize("name", ENCODED)
@given(data=st.data())
@cases(40)
def test_damaged_bytes(name: str, data: st.DataObject) -> None:
    opened(ImageRef(data=data.draw(damaged(ENCODED[name]))))


@pytest.mark.filterwarnings("ignore")
@given(name=st.sampled_from(sorted(ENCODED)), content=st.binary(max_size=300), size=st.integers(2, 60))
@cases(80)
def test_a_true_beginning_and_garbage_after_it(name: str, content: bytes, size: int) -> None:
    opened(ImageRef(data=ENCODED[name][:size] + content))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".txt", ""])
@pytest.mark.parametrize("name", ENCODED)
def test_the_content_counts_not_the_name(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(ENCODED[name])
    assert open_image(ImageRef(path=str(path)), LIMITS).size in ((40, 30), (30, 40))
