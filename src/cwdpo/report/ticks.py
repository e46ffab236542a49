"""Axes with round ticks, and numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

__all__ = ["Range", "bounds", "nice_ticks", "signed", "sparkline", "text_of", "tick_text", "whole"]

_MINUS = "−"
Range = tuple[float, float]


def bounds(values: Iterable[float], *, include: Iterable[float] = (), padding: float = 0.06) -> Range | None:
    """Return an axis' range around values, with some air; None if there are none.

    Args:
        values: What is drawn.
        include: Values that must be on the axis, such as 0.
        padding: Air above and below, as a share of the span. An included value that is the end gets none.
    """
    found = list(values)
    if not found:
        return None
    fixed = list(include)
    low, high = min(*found, *fixed, found[0]), max(*found, *fixed, found[0])
    span = high - low
    if span == 0:
        span = abs(high) * 0.1 or 1.0
        return low - span / 2, high + span / 2
    return low - (0 if low in fixed else padding * span), high + (0 if high in fixed else padding * span)


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Return about `count` round numbers (steps of 1, 2, 2.5 or 5 × 10ⁿ) within the range; `whole` ones if asked."""
    raw = (high - low) / max(1, count)
    if raw < 1e-300:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999]
    step = next(s for s in [*steps, 1.0] if not whole or s == int(s))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def tick_text(value: float, ticks: list[float]) -> str:
    """Write a tick with as many decimals as its neighbours need."""
    step = min((abs(b - a) for a, b in pairwise(ticks)), default=abs(value) or 1.0)
    if step < 1e-4 or abs(value) >= 1e6:
        return f"{value:.2g}".replace("-", _MINUS)
    decimals = next((d for d in range(6) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 6)
    text = f"{value:,.{decimals}f}".replace(",", " ")
    return text.replace("-", _MINUS)


def text_of(value: float | None, decimals: int = 3) -> str:
    """Write a number with fixed decimals, a true minus and spaces between thousands; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.1e}" if 0 < abs(value) < 0.5 * 10**-decimals else f"{value:,.{decimals}f}".replace(",", " ")
    return text.replace("-", _MINUS)


def signed(value: float, decimals: int = 3) -> str:
    """Write a difference with its sign."""
    text = text_of(value, decimals)
    return text if value <= 0 else f"+{text}"


def whole(value: float | None) -> str:
    """Write a count; a dash where there is none."""
    return "–" if value is None else text_of(round(value), 0)


def sparkline(counts: Sequence[int]) -> str:
    """Write a histogram as one character a bin; a dot is an empty bin."""
    most = max(counts, default=0)
    return "".join("·" if n == 0 else "▁▂▃▄▅▆▇█"[min(7, n * 8 // (most + 1))] for n in counts)
