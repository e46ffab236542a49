"""Pictures of every mode as upright RGB, 8 bits a channel."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image, ImageOps

__all__ = ["pixel_digest", "upright_rgb"]


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as the model sees it: EXIF orientation applied, transparency on white, grey scaled to 8 bits.

    Raises:
        ValueError: Its pixels have no known range.
        OSError: It cannot be decoded; Pillow raises errors of other kinds too.
    """
    picture.load()
    return _to_rgb(_upright(picture))


def pixel_digest(picture: Image.Image) -> str:
    """Return the SHA-256 of what a picture in memory shows, in hex.

    Raises:
        OSError: It cannot be shown.
    """
    try:
        shown = upright_rgb(picture)
    except Exception as error:  # Pillow raises of every kind
        raise OSError(str(error) or type(error).__name__) from error
    return hashlib.sha256(f"{shown.size} ".encode() + shown.tobytes()).hexdigest()


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # an unreadable EXIF block says nothing about orientation; the pixels are sound
        return picture.copy()


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert to 8 bits")
    if picture.mode.startswith("I"):  # "I", "I;16", "I;16B": Pillow's own conversion clips at 255 instead of scaling
        grey = np.clip(np.asarray(picture, dtype=np.int64), 0, None)
        return Image.fromarray((grey >> _bits_too_many(picture.mode, grey)).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _bits_too_many(mode: str, grey: np.ndarray) -> int:
    """Return by how many bits grey is shifted: modes of 16 bits say so, of "I" (32 bits) its largest value tells."""
    most = int(grey.max(initial=0)).bit_length()
    return 8 if mode != "I" else max(0, most - 8) if most > 16 else next(n - 8 for n in (8, 12, 16) if most <= n)
