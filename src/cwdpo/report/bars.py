"""Bars and histograms as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from cwdpo.report.svg import Box, drawing, line, mark, text, x_axis
from cwdpo.report.ticks import text_of

__all__ = ["Bar", "HistogramRow", "TokenRow", "bar_chart", "histogram_rows", "token_chart"]


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
    before: Sequence[int] = ()
    """Counts at an earlier time, drawn as an outline."""


@dataclass(frozen=True)
class TokenRow:
    """A token, and for each run how likely it was at the start and is now.

    Attributes:
        token: The token's text.
        gold: It is the one that stands in the gold response.
        shares: (run's name, style, probability at the start, probability now).
    """

    token: str
    gold: bool
    shares: Sequence[tuple[str, str, float, float]]


def bar_chart(bars: Sequence[Bar], *, title: str, description: str, decimals: int = 3, width: int = 280) -> Markup:
    """Draw horizontal bars from 0, a row each, the value beside its name, with a tick at the start's value."""
    row = 40
    box = Box(width=width, height=row * len(bars) + 6, left=0, right=4, top=0, bottom=6)
    high = max([b.value for b in bars] + [b.start or 0.0 for b in bars]) or 1.0
    parts: list[Markup] = []
    for i, bar in enumerate(bars):
        y, length = i * row, max(0.0, bar.value) / high * (box.x_end - box.left)
        start, value = text_of(bar.start, decimals), text_of(bar.value, decimals)
        said = f"{bar.name}: {value}" + ("" if bar.start is None else f" (at the start {start})")
        value = value if bar.start is None else f"{start} → {value}"
        name = Markup('<text x="{}" y="{}" class="row-name">{}<tspan class="value" dx="8">{}</tspan></text>')
        parts.append(name.format(box.left, y + 11, bar.name, value))
        parts.append(_bar(bar.style, said, box.left, y + 19, round(max(length, 1.0), 1), 14))
        if bar.start is not None:
            x = round(max(0.0, bar.start) / high * (box.x_end - box.left), 1)
            parts.append(mark(x, y + 17, y + 35, f"{bar.name}: {text_of(bar.start, decimals)} at the start"))
    return drawing(box, title, description, parts)


def histogram_rows(rows: Sequence[HistogramRow], *, title: str, description: str, x_name: str) -> Markup:
    """Draw a histogram over [0, 1] per row, one below the other on the same x axis, each on a scale of its own."""
    row = 52
    box = Box(height=row * len(rows) + 44, left=64, right=14, top=10, bottom=34)
    width = box.x_end - box.left
    parts = [x_axis(box, (0.0, 1.0), lambda v: round(box.left + v * width, 1), x_name)]
    for i, found in enumerate(rows):
        base = box.top + row * (i + 1) - 4
        tallest = max([*found.counts, *found.before], default=0) or 1
        parts.append(line(box.left, base, box.x_end, base, "grid"))
        parts.append(text(box.left - 8, base - 6, found.name, f"end-label {found.style}", "end"))
        heights = [round((row - 12) * max(0, n) / tallest, 1) for n in found.counts]
        parts += _columns(found, heights, box.left, base, width)
        if found.before:
            parts.append(_outline([(row - 12) * max(0, n) / tallest for n in found.before], box.left, base, width))
        for said, value in found.marks.items():
            parts.append(mark(round(box.left + value * width, 1), base - row + 10, base, said))
    return drawing(box, title, description, parts)


def _columns(row: HistogramRow, heights: Sequence[float], left: float, base: float, width: float) -> list[Markup]:
    bins, total = len(row.counts), sum(row.counts)
    step = width / max(1, bins)
    parts: list[Markup] = []
    for j, (count, height) in enumerate(zip(row.counts, heights, strict=True)):
        if count:
            said = f"{row.name}, {j / bins:.1f} to {(j + 1) / bins:.1f}: {count} of {total}"
            x = round(left + j * step + 0.75, 1)
            parts.append(_bar(row.style, said, x, base - height, round(step - 1.5, 1), height))
    return parts


def _outline(heights: Sequence[float], left: float, base: float, width: float) -> Markup:
    """Draw the upper edge of a histogram as a line of steps."""
    step = width / len(heights)
    edges = (f"V{round(base - h, 1)}H{round(left + (j + 1) * step, 1)}" for j, h in enumerate(heights))
    return Markup('<path class="outline" d="M{} {}{}V{}"/>').format(left, base, "".join(edges), base)


def _bar(style: str, said: str, x: float, y: float, width: float, height: float) -> Markup:
    rect = Markup('<g class="bar {}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="1.5"/></g>')
    return rect.format(style, said, x, y, width, height)


def token_chart(rows: Sequence[TokenRow], *, title: str, description: str, width: int = 420) -> Markup:
    """Draw a token a row, in it a bar a run at its probability now and a tick at its probability at the start."""
    thick, gap = 11, 4
    tall = max((len(r.shares) for r in rows), default=1) * (thick + gap) + 8
    box = Box(width=width, height=tall * len(rows) + 34, left=92, right=46, top=0, bottom=34)
    length = box.x_end - box.left
    parts = [x_axis(box, (0.0, 1.0), lambda v: round(box.left + v * length, 1), "probability")]
    for i, row in enumerate(rows):
        y = i * tall + 4
        parts.append(text(box.left - 8, y + (tall - 8) / 2 + 3, row.token, "gold-token" if row.gold else "tick", "end"))
        for j, (name, style, start, now) in enumerate(row.shares):
            top = y + j * (thick + gap)
            said = f"{row.token}, {name}: {text_of(start, 3)} at the start, {text_of(now, 3)} now"
            parts.append(_bar(style, said, box.left, top, round(max(1.0, now * length), 1), thick))
            parts.append(mark(round(box.left + start * length, 1), top - 1, top + thick + 1, said))
            parts.append(text(width, top + thick - 1, f"{now:.2f}", "value", "end"))
    return drawing(box, title, description, parts)
