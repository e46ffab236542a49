"""A scene as a picture: 64 x 64 pixels, the same bytes every time."""

from __future__ import annotations

import functools
import io

from PIL import Image, ImageDraw

from cwdpo.scenes.world import GRID, Scene, Shape

__all__ = ["BACKGROUND", "PIXELS", "png_bytes", "render"]

PIXELS = 64
"""Width and height of a picture."""

BACKGROUND = (223, 235, 223)
"""Mean colour of what is no shape, RGB. Red fades from left to right and blue from top to bottom, by `_FADE` levels
in all: a patch shows where it is, which a vision tower without absolute positions could not learn in minutes."""
_FADE = 64

_RGB = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 30),
    "purple": (140, 40, 170),
    "orange": (250, 130, 20),
}
_RADIUS = {"small": 4.0, "large": 6.5}
# Drawn larger and scaled down: PIL's shapes have hard edges.
_OVERSAMPLING = 4
_SIDE = PIXELS * _OVERSAMPLING


def _outline(shape: Shape, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return the polygon of a shape that is no circle, its middle at (x, y)."""
    corners: dict[str, list[tuple[float, float]]] = {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
        "diamond": [(0, -1.05), (0.8, 0), (0, 1.05), (-0.8, 0)],
    }
    if shape.kind != "cross":
        return [(x + radius * u, y + radius * v) for u, v in corners[shape.kind]]
    r, a = radius, 0.4 * radius
    plus = [(-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a), (a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a)]
    return [(x + u, y + v) for u, v in plus]


@functools.cache
def _background() -> Image.Image:
    """Return the empty picture, oversampled: red by column, blue by row."""
    downwards = Image.linear_gradient("L").resize((_SIDE, _SIDE))
    red, green, blue = BACKGROUND
    levels = [[mean + _FADE // 2 - v * _FADE // 255 for v in range(256)] for mean in (red, blue)]
    by_column = downwards.transpose(Image.Transpose.TRANSPOSE).point(levels[0])
    return Image.merge("RGB", (by_column, Image.new("L", downwards.size, green), downwards.point(levels[1])))


def render(scene: Scene) -> Image.Image:
    """Return the picture of `scene`, RGB, `PIXELS` wide and high."""
    picture = _background().copy()
    draw = ImageDraw.Draw(picture)
    cell = PIXELS / GRID
    for shape in scene.shapes:
        x = (cell * (shape.column + 0.5) + shape.dx) * _OVERSAMPLING
        y = (cell * (shape.row + 0.5) + shape.dy) * _OVERSAMPLING
        radius = _RADIUS[shape.size] * _OVERSAMPLING
        if shape.kind == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_RGB[shape.colour])
        else:
            draw.polygon(_outline(shape, x, y, radius), fill=_RGB[shape.colour])
    return picture.resize((PIXELS, PIXELS), Image.Resampling.BOX)


def png_bytes(scene: Scene) -> bytes:
    """Return the picture of `scene` as a PNG file."""
    buffer = io.BytesIO()
    render(scene).save(buffer, format="PNG")
    return buffer.getvalue()
