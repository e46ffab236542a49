import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwdpo.data import ImageLimits, ImageRef, check_image, open_image
from cwdpo.errors import DataError


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> ImageRef:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return ImageRef(data=buffer.getvalue())


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is huge and has almost nothing in it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def test_a_file_comes_back_rgb_and_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (5, 3), (1, 2, 3)).save(path)
    picture = open_image(ImageRef(path=str(path)))
    path.unlink()  # nothing is read later
    assert (picture.mode, picture.size, picture.getpixel((4, 2))) == ("RGB", (5, 3), (1, 2, 3))


def test_exif_orientation_6_turns_the_picture_a_quarter_clockwise() -> None:
    # Stored 4 wide and 2 high with the left half white; turned clockwise it is 2 wide, 4 high,
    # the top half white.
    stored = Image.new("L", (4, 2), 0)
    stored.paste(255, (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = open_image(encoded(stored, exif=exif))
    assert picture.size == (2, 4)
    assert np.asarray(picture)[:, 0, 0].tolist() == [255, 255, 0, 0]


def test_transparency_is_laid_on_white() -> None:
    # Red at alpha 51/255 = 0.2 on white: 0.2 * 255 + 0.8 * 255 = 255 for red, 0.8 * 255 = 204 for the others.
    assert open_image(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 51)))).getpixel((0, 0)) == (255, 204, 204)


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    opened = open_image(encoded(picture, transparency=1))
    assert (opened.getpixel((0, 0)), opened.getpixel((1, 0))) == ((10, 20, 30), (255, 255, 255))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    # 0x8000 of 0xffff is half: 0x80 = 128 in 8 bits. Pillow's own conversion gives 255.
    grey = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert open_image(encoded(grey)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(kind: str) -> None:
    assert open_image(encoded(Image.new("RGB", (6, 4)), kind)).size == (6, 4)


def test_a_picture_in_memory_is_not_changed() -> None:
    picture = Image.new("L", (2, 2), 7)
    opened = open_image(ImageRef(picture=picture))
    assert (opened.getpixel((0, 0)), picture.mode) == ((7, 7, 7), "L")
    opened.putpixel((0, 0), (9, 9, 9))
    assert picture.getpixel((0, 0)) == 7


def test_a_bomb_is_refused_from_its_header_whatever_pillow_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    reason = check_image(ImageRef(data=png_header(60_000, 60_000)))
    assert reason is not None
    assert "60000 x 60000 = 3,600,000,000 pixels" in reason
    assert "more than the limit of 64,000,000" in reason


def test_the_limit_is_ours_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow alone would raise above 20 pixels
    assert check_image(encoded(Image.new("RGB", (10, 10))), ImageLimits(max_pixels=100)) is None
    assert "10 x 11 = 110 pixels" in str(check_image(encoded(Image.new("RGB", (10, 11))), ImageLimits(max_pixels=100)))
    assert Image.MAX_IMAGE_PIXELS == 10


def noise(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), kind).data
    assert data is not None
    return data


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_truncation_is_found(kind: str, share: float) -> None:
    whole = noise(kind)
    assert check_image(ImageRef(data=whole)) is None
    reason = check_image(ImageRef(data=whole[: int(len(whole) * share)]))
    assert reason is not None
    assert "cannot be decoded whole" in reason or "header is damaged" in reason


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none.png", "no such file"),
        (lambda p: p, "a folder or a device"),
        (lambda p: Path("/dev/zero"), "a folder or a device"),
        (lambda p: _file(p / "empty.png", b""), "no bytes"),
        (lambda p: _file(p / "text.png", b"hello, I am no picture"), "not of a known format"),
        (
            lambda p: _file(p / "page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            "not of a known format",
        ),
        (lambda p: _file(p / "cut.png", png_header(8, 8)[:20]), "damaged"),
        (lambda p: p / ("x" * 300), "too long"),
    ],
)
def test_a_file_that_is_no_image_gives_one_line(tmp_path: Path, make, words: str) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        open_image(ImageRef(path=str(path)))
    assert words in str(caught.value)
    assert path.name[:100] in str(caught.value)
    assert "\n" not in str(caught.value)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
