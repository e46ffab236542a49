"""Line charts as inline SVG, and the pieces of any chart. Colours come from the page's style sheet, by class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from markupsafe import Markup

from cwdpo.report.ticks import Range, bounds, nice_ticks, tick_text

__all__ = ["Box", "Series", "drawing", "line", "line_chart", "mark", "span", "text", "x_axis"]

_STEPS = "update"
"""Name of the x axis that counts the optimiser's updates: its ticks are whole numbers."""

_Point = TypeVar("_Point")

_MOST_POINTS = 400
"""A longer series is thinned: a chart is 400 units wide."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: What it is, for labels and hover.
        points: (x, y), x rising.
        style: Class of the style sheet that gives the colour (and the dashes).
        sizes: Relative area of each point's dot; no dots where empty.
        notes: What a dot says when pointed at; as long as `sizes`.
        band: (x, low, high) of an area behind the line; nothing where empty.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str
    sizes: Sequence[float] = ()
    notes: Sequence[str] = ()
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Box:
    """Size of a drawing and of the margins around its plot, in SVG units (pixels at full width)."""

    width: int = 420
    height: int = 250
    left: int = 46
    right: int = 62
    top: int = 22
    bottom: int = 34

    @property
    def x_end(self) -> int:
        """Right edge of the plot."""
        return self.width - self.right

    @property
    def y_end(self) -> int:
        """Lower edge of the plot."""
        return self.height - self.bottom


def span(series: Sequence[Series], axis: int = 1, *, include: Sequence[float] = ()) -> Range | None:
    """Return the range of all series along x (0) or y (1), so that several charts can share an axis."""
    values = [p[axis] for s in series for p in s.points]
    values += [v for s in series for x, low, high in s.band for v in ((low, high) if axis else (x,))]
    return bounds(values, include=include, padding=0.06 if axis else 0.0)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    unit: str = "",
    x_name: str = _STEPS,
    x_range: Range | None = None,
    y_range: Range | None = None,
    reference: float | None = None,
    diagonal: bool = False,
    labels: bool = True,
    box: Box | None = None,
) -> Markup:
    """Draw lines over a common x axis.

    Args:
        series: The lines; at least one point in all.
        title: Accessible title.
        description: Accessible description: what to see.
        unit: Written above the y axis.
        x_name: Written below the x axis.
        x_range: Range of x; default the data's.
        y_range: Range of y; default the data's, with some air.
        reference: Height of a dashed horizontal line.
        diagonal: Draw the dashed line y = x.
        labels: Write each line's name at its end.
        box: Size and margins.
    """
    box = box or Box()
    drawn = [s if s.sizes else replace(s, points=_thin(s.points), band=_thin(s.band)) for s in series if s.points]
    x_low, x_high = _not_empty(x_range or span(drawn, 0) or (0.0, 1.0))
    y_low, y_high = _not_empty(y_range or span(drawn, 1) or (0.0, 1.0))

    def x_at(value: float) -> float:
        return round(box.left + (value - x_low) / (x_high - x_low) * (box.x_end - box.left), 1)

    def y_at(value: float) -> float:
        return round(box.y_end - (value - y_low) / (y_high - y_low) * (box.y_end - box.top), 1)

    parts = [_y_axis(box, (y_low, y_high), y_at, unit), x_axis(box, (x_low, x_high), x_at, x_name)]
    if reference is not None and y_low <= reference <= y_high:
        parts.append(line(box.left, y_at(reference), box.x_end, y_at(reference), "ref"))
    if diagonal:
        low, high = max(x_low, y_low), min(x_high, y_high)
        parts.append(line(x_at(low), y_at(low), x_at(high), y_at(high), "ref"))
    parts += [_band(s, x_at, y_at) for s in drawn if len(s.band) > 1]
    for s in drawn:
        parts.append(_path(s, x_at, y_at))
        parts.extend(_dots(s, x_at, y_at))
    if labels:
        parts.append(_end_labels([(s.name, y_at(s.points[-1][1]), s.style) for s in drawn], box))
    hover = {
        "box": [box.left, box.x_end, box.top, box.y_end],
        "x": [x_low, x_high],
        "y": [y_low, y_high],
        "name": x_name,
        "series": [_hover(s) for s in drawn],
    }
    return drawing(box, title, description, parts, hover)


def _hover(series: Series) -> dict[str, Any]:
    values = {"p": series.points, "b": series.band}
    rows = {key: [list(map(_short, row)) for row in points] for key, points in values.items() if points}
    return {"n": series.name, "c": series.style, **rows}


# -- pieces ------------------------------------------------------------------------------------------------------------


def drawing(
    box: Box, title: str, description: str, parts: Sequence[Markup], hover: Mapping[str, Any] | None = None
) -> Markup:
    """Put parts together as a drawing with a title and a description, and the values that appear under the pointer."""
    data = Markup(' tabindex="0" data-chart="{}"').format(json.dumps(hover, separators=(",", ":"))) if hover else ""
    frame = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" preserveAspectRatio="xMinYMin meet"{}>'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    )
    return frame.format(box.width, box.height, data, title, description, Markup("").join(parts))


def x_axis(box: Box, axis: Range, x_at: Any, name: str) -> Markup:
    """Draw the x axis with its ticks and its name."""
    ticks = nice_ticks(*axis, count=5 if box.width > 320 else 4, whole=name == _STEPS)
    parts = [line(box.left, box.y_end, box.x_end, box.y_end, "axis")]
    for tick in ticks:
        parts.append(line(x_at(tick), box.y_end, x_at(tick), box.y_end + 4, "axis"))
        parts.append(text(x_at(tick), box.y_end + 16, tick_text(tick, ticks), "tick", "middle"))
    parts.append(text(box.x_end, box.y_end + 30, name, "unit", "end"))
    return Markup("").join(parts)


def _y_axis(box: Box, axis: Range, y_at: Any, unit: str) -> Markup:
    ticks = nice_ticks(*axis, count=5 if box.height > 200 else 4)
    parts = [text(0, 10, unit, "unit")] if unit else []
    for tick in ticks:
        parts.append(line(box.left, y_at(tick), box.x_end, y_at(tick), "grid"))
        parts.append(text(box.left - 6, y_at(tick) + 4, tick_text(tick, ticks), "tick", "end"))
    return Markup("").join(parts)


def _band(series: Series, x_at: Any, y_at: Any) -> Markup:
    there = [f"{x_at(x)} {y_at(high)}" for x, _, high in series.band]
    back = [f"{x_at(x)} {y_at(low)}" for x, low, _ in reversed(series.band)]
    return Markup('<path class="band {}" d="M{}Z"/>').format(series.style, " L".join(there + back))


def _path(series: Series, x_at: Any, y_at: Any) -> Markup:
    steps = " ".join(f"{'L' if i else 'M'}{x_at(x)} {y_at(y)}" for i, (x, y) in enumerate(series.points))
    x, y = series.points[-1]
    end = Markup('<circle class="end" cx="{}" cy="{}" r="2.6"/>').format(x_at(x), y_at(y)) if not series.sizes else ""
    return Markup('<g class="line {}"><path d="{}"/>{}</g>').format(series.style, steps, end)


def _dots(series: Series, x_at: Any, y_at: Any) -> list[Markup]:
    if not series.sizes:
        return []
    largest = max(series.sizes) or 1.0
    dot = Markup('<g class="dot {}"><title>{}</title><circle cx="{}" cy="{}" r="{}"/></g>')
    radii = [round(2 + 5 * (size / largest) ** 0.5, 1) for size in series.sizes]
    rows = zip(series.points, radii, series.notes, strict=True)
    return [dot.format(series.style, f"{series.name}: {note}", x_at(x), y_at(y), r) for (x, y), r, note in rows]


def _end_labels(labels: Sequence[tuple[str, float, str]], box: Box) -> Markup:
    """Write names beside the lines' ends, moved apart where they would overlap."""
    gap, placed = 13.0, list[list[Any]]()
    for name, y, style in sorted(labels, key=lambda item: item[1]):
        placed.append([name, max(y, placed[-1][1] + gap) if placed else y, style])
    limit = float(box.y_end)
    for item in reversed(placed):
        item[1] = min(item[1], limit)
        limit = item[1] - gap
    texts = [text(box.x_end + 7, round(y + 4, 1), name, f"end-label {style}") for name, y, style in placed]
    return Markup("").join(texts)


def text(x: float, y: float, words: str, style: str, anchor: str = "start") -> Markup:
    """Write words at a place."""
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(x, y, style, anchor, words)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """Draw a straight line."""
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, style)


def mark(x: float, y1: float, y2: float, said: str) -> Markup:
    """Draw a vertical tick that stays visible on any bar."""
    frame = Markup('<g class="mark-at"><title>{}</title><path class="halo" d="{}"/><path d="{}"/></g>')
    path = f"M{x} {y1}V{y2}"
    return frame.format(said, path, path)


def _thin(points: Sequence[_Point]) -> Sequence[_Point]:
    """Keep every n-th point and the last one, so that at most `_MOST_POINTS` and one remain."""
    stride = -(-len(points) // _MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _not_empty(axis: Range) -> Range:
    return axis if axis[1] > axis[0] else (axis[0] - 0.5, axis[0] + 0.5)


def _short(value: float) -> float:
    return float(f"{value:.4g}") if value != int(value) else int(value)
