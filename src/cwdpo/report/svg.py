"""Charts as inline SVG: lines, bars, histograms. Colours come from the page's style sheet, by class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from cwdpo.report.scale import Range, bounds, nice_ticks, text_of, tick_text

__all__ = ["Bar", "Box", "HistogramRow", "Series", "bar_chart", "histogram_rows", "line_chart", "span"]

_STEPS = "update"
"""Name of the x axis that counts the optimiser's updates: its ticks are whole numbers."""

_MOST_POINTS = 400
"""A longer series is thinned before it is drawn; nobody sees more on 400 units of width."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: What it is, for labels and hover.
        points: (x, y), x rising.
        style: Class of the style sheet that gives the colour (and the dashes).
        sizes: Relative area of each point's dot; no dots where empty.
        notes: What a dot says when pointed at; as long as `sizes`.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str
    sizes: Sequence[float] = ()
    notes: Sequence[str] = ()


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


@dataclass(frozen=True)
class Bar:
    """One bar: its row's name, its value, and where the stage started, if that is known."""

    name: str
    value: float
    style: str
    start: float | None = None


@dataclass(frozen=True)
class HistogramRow:
    """Counts over equal bins of [0, 1]."""

    name: str
    counts: Sequence[int]
    style: str
    marks: Mapping[str, float] = field(default_factory=dict[str, float])


def span(series: Sequence[Series], axis: int = 1, *, include: Sequence[float] = ()) -> Range | None:
    """Return the range of all series along x (0) or y (1), so that several charts can share an axis."""
    values = [p[axis] for s in series for p in s.points]
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
    drawn = [s if s.sizes else Series(s.name, _thin(s.points), s.style) for s in series if s.points]
    x_low, x_high = _not_empty(x_range or span(drawn, 0) or (0.0, 1.0))
    y_low, y_high = _not_empty(y_range or span(drawn, 1) or (0.0, 1.0))

    def x_at(value: float) -> float:
        return round(box.left + (value - x_low) / (x_high - x_low) * (box.x_end - box.left), 1)

    def y_at(value: float) -> float:
        return round(box.y_end - (value - y_low) / (y_high - y_low) * (box.y_end - box.top), 1)

    parts = [_y_axis(box, (y_low, y_high), y_at, unit), _x_axis(box, (x_low, x_high), x_at, x_name)]
    if reference is not None and y_low <= reference <= y_high:
        parts.append(_line(box.left, y_at(reference), box.x_end, y_at(reference), "ref"))
    if diagonal:
        low, high = max(x_low, y_low), min(x_high, y_high)
        parts.append(_line(x_at(low), y_at(low), x_at(high), y_at(high), "ref"))
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
        "series": [{"n": s.name, "c": s.style, "p": [[_short(x), _short(y)] for x, y in s.points]} for s in drawn],
    }
    return _svg(box, title, description, parts, hover)


def bar_chart(bars: Sequence[Bar], *, title: str, description: str, decimals: int = 3, width: int = 280) -> Markup:
    """Draw horizontal bars from 0, a row each, the value beside its name, with a tick at the start's value."""
    row = 40
    box = Box(width=width, height=row * len(bars) + 6, left=0, right=4, top=0, bottom=6)
    high = max([b.value for b in bars] + [b.start or 0.0 for b in bars]) or 1.0
    parts: list[Markup] = []
    for i, bar in enumerate(bars):
        y, length = i * row, max(0.0, bar.value) / high * (box.x_end - box.left)
        said = f"{bar.name}: {text_of(bar.value, decimals)}"
        if bar.start is not None:
            said += f" (at the start {text_of(bar.start, decimals)})"
        value = text_of(bar.value, decimals)
        value = value if bar.start is None else f"{text_of(bar.start, decimals)} → {value}"
        name = Markup('<text x="{}" y="{}" class="row-name">{}<tspan class="value" dx="8">{}</tspan></text>')
        parts.append(name.format(box.left, y + 11, bar.name, value))
        mark = Markup('<g class="bar {}"><title>{}</title><rect x="{}" y="{}" width="{}" height="14" rx="2"/></g>')
        parts.append(mark.format(bar.style, said, box.left, y + 19, round(max(length, 1.0), 1)))
        if bar.start is not None:
            x = round(max(0.0, bar.start) / high * (box.x_end - box.left), 1)
            parts.append(_mark(x, y + 17, y + 35, f"{bar.name}: {text_of(bar.start, decimals)} at the start"))
    return _svg(box, title, description, parts)


def histogram_rows(rows: Sequence[HistogramRow], *, title: str, description: str, x_name: str) -> Markup:
    """Draw a histogram over [0, 1] per row, one below the other on the same x axis, as shares of each row."""
    row = 52
    box = Box(height=row * len(rows) + 44, left=64, right=14, top=10, bottom=34)
    width = box.x_end - box.left
    parts = [_x_axis(box, (0.0, 1.0), lambda v: round(box.left + v * width, 1), x_name)]
    for i, found in enumerate(rows):
        total, base = sum(found.counts), box.top + row * (i + 1) - 4
        tallest = max(found.counts, default=0) or 1
        parts.append(_line(box.left, base, box.x_end, base, "grid"))
        parts.append(_text(box.left - 8, base - 6, found.name, f"end-label {found.style}", "end"))
        step = width / max(1, len(found.counts))
        for j, count in enumerate(found.counts):
            height = round((row - 12) * max(0, count) / tallest, 1)
            low, high = j / len(found.counts), (j + 1) / len(found.counts)
            said = f"{found.name}, {low:.1f} to {high:.1f}: {count} of {total}"
            rect = Markup('<g class="bar {}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}"/></g>')
            if count:
                x = round(box.left + j * step + 0.75, 1)
                parts.append(rect.format(found.style, said, x, base - height, round(step - 1.5, 1), height))
        for said, value in found.marks.items():
            parts.append(_mark(round(box.left + value * width, 1), base - row + 10, base, said))
    return _svg(box, title, description, parts)


# -- pieces ------------------------------------------------------------------------------------------------------------


def _svg(
    box: Box, title: str, description: str, parts: Sequence[Markup], hover: Mapping[str, Any] | None = None
) -> Markup:
    data = Markup(' tabindex="0" data-chart="{}"').format(json.dumps(hover, separators=(",", ":"))) if hover else ""
    frame = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" preserveAspectRatio="xMinYMin meet"{}>'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    )
    return frame.format(box.width, box.height, data, title, description, Markup("").join(parts))


def _x_axis(box: Box, axis: Range, x_at: Any, name: str) -> Markup:
    ticks = nice_ticks(*axis, count=5 if box.width > 320 else 4, whole=name == _STEPS)
    parts = [_line(box.left, box.y_end, box.x_end, box.y_end, "axis")]
    for tick in ticks:
        parts.append(_line(x_at(tick), box.y_end, x_at(tick), box.y_end + 4, "axis"))
        parts.append(_text(x_at(tick), box.y_end + 16, tick_text(tick, ticks), "tick", "middle"))
    parts.append(_text(box.x_end, box.y_end + 30, name, "unit", "end"))
    return Markup("").join(parts)


def _y_axis(box: Box, axis: Range, y_at: Any, unit: str) -> Markup:
    ticks = nice_ticks(*axis, count=5 if box.height > 200 else 4)
    parts: list[Markup] = []
    for tick in ticks:
        parts.append(_line(box.left, y_at(tick), box.x_end, y_at(tick), "grid"))
        parts.append(_text(box.left - 6, y_at(tick) + 4, tick_text(tick, ticks), "tick", "end"))
    if unit:
        parts.append(_text(0, 10, unit, "unit"))
    return Markup("").join(parts)


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
    found: list[Markup] = []
    for (x, y), size, note in zip(series.points, series.sizes, series.notes, strict=True):
        radius = round(2 + 5 * (size / largest) ** 0.5, 1)
        found.append(dot.format(series.style, f"{series.name}: {note}", x_at(x), y_at(y), radius))
    return found


def _end_labels(labels: Sequence[tuple[str, float, str]], box: Box) -> Markup:
    """Write names beside the lines' ends, moved apart where they would overlap."""
    gap, placed = 13.0, list[list[Any]]()
    for name, y, style in sorted(labels, key=lambda item: item[1]):
        placed.append([name, max(y, placed[-1][1] + gap) if placed else y, style])
    limit = float(box.y_end)
    for item in reversed(placed):
        item[1] = min(item[1], limit)
        limit = item[1] - gap
    texts = [_text(box.x_end + 7, round(y + 4, 1), name, f"end-label {style}") for name, y, style in placed]
    return Markup("").join(texts)


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(x, y, style, anchor, text)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, style)


def _mark(x: float, y1: float, y2: float, said: str) -> Markup:
    """Draw a vertical tick that stays visible on any bar."""
    mark = Markup('<g class="mark-at"><title>{}</title><path class="halo" d="{}"/><path d="{}"/></g>')
    path = f"M{x} {y1}V{y2}"
    return mark.format(said, path, path)


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Keep every n-th point and the last one, so that at most `_MOST_POINTS` and one remain."""
    stride = -(-len(points) // _MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _not_empty(axis: Range) -> Range:
    return axis if axis[1] > axis[0] else (axis[0] - 0.5, axis[0] + 0.5)


def _short(value: float) -> float:
    return float(f"{value:.4g}") if value != int(value) else int(value)
