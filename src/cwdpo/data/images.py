"""Images, opened one at a time: guarded before decoding, whole, upright, RGB."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from cwdpo.data.pixels import upright_rgb
from cwdpo.data.schema import ImageRef
from cwdpo.errors import DataError, one_line

__all__ = [
    "FORMATS",
    "ImageError",
    "ImageLimits",
    "check_image",
    "image_problem",
    "image_size",
    "missing_file",
    "open_image",
]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Formats that are tried, and no other: Pillow's whole list has decoders that start programs (EPS)."""


class ImageError(DataError):
    """An image cannot be used.

    Attributes:
        kind: The rule that is broken, in the same words for every image.
        detail: Which image, and the particulars.
    """

    def __init__(self, kind: str, name: str = "", detail: str = "") -> None:
        self.kind = kind
        self.detail = one_line(f"{name}: {detail}", 500)
        super().__init__(f"image {self.detail}" if name else kind)  # one argument: as a worker process raises it again


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be.

    Attributes:
        max_pixels: Width times height, read from the header before anything is decoded. The default, 64 megapixels,
            is a quarter of a gigabyte decoded.
    """

    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise DataError(f"max_pixels = {self.max_pixels}: must be at least 1; leave it out for 64,000,000")


def open_image(ref: ImageRef, limits: ImageLimits | None = None) -> Image.Image:
    """Return an image decoded, upright and RGB, altered where its reference says so.

    The size is checked from the header before decoding. The EXIF orientation is applied, transparency is laid on
    white, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken. No global setting of Pillow is
    read as a guard or changed.

    Args:
        ref: Where the image is.
        limits: What it may be; the defaults where None.

    Returns:
        A new RGB picture, fully in memory; no file stays open.

    Raises:
        DataError: One line: which image, and missing, not an image, too large, or truncated.
    """
    limits = limits or ImageLimits()
    if ref.picture is not None:
        _check_size(ref.name, ref.picture, limits)
        picture = _decoded(ref.name, ref.picture)
    else:
        with _bytes_of(ref) as handle:
            picture = _read_header(ref.name, handle)
            _check_size(ref.name, picture, limits)
            picture = _decoded(ref.name, picture)
    return picture if ref.altered is None else ref.altered.apply(picture)


def image_size(ref: ImageRef, limits: ImageLimits | None = None) -> tuple[int, int]:
    """Return (width, height) from an image's header, without decoding it.

    Raises:
        DataError: As `open_image`.
    """
    if ref.picture is not None:
        return ref.picture.size
    with _bytes_of(ref) as handle:
        picture = _read_header(ref.name, handle)
        _check_size(ref.name, picture, limits or ImageLimits())
        return picture.size


def check_image(ref: ImageRef, limits: ImageLimits | None = None) -> str | None:
    """Decode an image and let it go.

    Returns:
        Why it cannot be used, in one line, or None where it can.
    """
    problem = image_problem(ref, limits)
    return None if problem is None else str(problem)


def image_problem(ref: ImageRef, limits: ImageLimits | None = None) -> ImageError | None:
    """Decode an image and let it go; return the error that `open_image` raises, or None."""
    try:
        open_image(ref, limits)
    except ImageError as error:
        return error
    return None


def missing_file(ref: ImageRef) -> ImageError | None:
    """Return why an image that should be a file is none, without reading it; None where it is, or is not a path."""
    if ref.path is None:
        return None
    try:
        mode = Path(ref.path).stat()
    except OSError as error:
        return _unreadable(ref.path, error)
    except ValueError as error:
        return ImageError("image cannot be read", repr(ref.path), one_line(error))
    if not stat.S_ISREG(mode.st_mode):
        return ImageError("image is not a file", ref.path, "is a folder or a device")
    return ImageError("image is empty", ref.path, "the file has no bytes") if mode.st_size == 0 else None


@contextlib.contextmanager
def _bytes_of(ref: ImageRef) -> Generator[IO[bytes]]:
    """Yield the encoded image as a file object."""
    if ref.path is None:
        content = ref.data if ref.data is not None else _stored(ref)
        if not content:
            raise ImageError("image is empty", ref.name, "holds no bytes")
        yield io.BytesIO(content)
        return
    problem = missing_file(ref)
    if problem is not None:
        raise problem
    try:
        handle = Path(ref.path).open("rb")  # noqa: SIM115 (closed below; only opening it may raise this error)
    except OSError as error:
        raise _unreadable(ref.path, error) from error
    with handle:
        yield handle


def _stored(ref: ImageRef) -> bytes:
    assert ref.stored is not None, "an ImageRef without path, data, picture and stored"
    try:
        return ref.stored.read()
    except OSError as error:
        raise _unreadable(ref.name, error) from error


def _read_header(name: str, handle: IO[bytes]) -> Image.Image:
    """Return the picture undecoded. `Image.open` would apply Pillow's global size limit, so its readers are asked."""
    prefix = handle.read(16)
    for format_name in FORMATS:
        if format_name not in Image.OPEN:
            Image.init()
        if format_name not in Image.OPEN:
            continue  # this build of Pillow lacks the codec
        reader, accepts = Image.OPEN[format_name]
        if accepts is not None and accepts(prefix) is not True:
            continue
        handle.seek(0)
        try:
            return reader(handle, "")
        except Exception as error:  # Pillow's readers raise of every kind on a damaged header
            detail = f"its {format_name} header is damaged ({one_line(error, 120)})"
            raise ImageError("image truncated or damaged", name, detail) from error
    raise ImageError("not an image", name, f"not of a known format ({', '.join(FORMATS)})")


def _check_size(name: str, picture: Image.Image, limits: ImageLimits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise ImageError(
            "image too large",
            name,
            f"{width} x {height} = {width * height:,} pixels, more than the limit of {limits.max_pixels:,} "
            "(guard against decompression bombs); shrink it or raise data.image_pixel_limit",
        )
    if width < 1 or height < 1:
        raise ImageError("image is empty", name, f"{width} x {height} pixels")


def _decoded(name: str, picture: Image.Image) -> Image.Image:
    try:
        return upright_rgb(picture)
    except Exception as error:  # as above: OSError, SyntaxError, ValueError, zlib.error, MemoryError, …
        detail = one_line(error, 120) or type(error).__name__
        raise ImageError("image truncated or damaged", name, f"cannot be decoded whole ({detail})") from error


def _unreadable(name: str, error: OSError) -> ImageError:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return ImageError("image missing", name, "no such file")
    return ImageError("image cannot be read", name, os.strerror(error.errno) if error.errno else one_line(error))
