"""What the page is made of. A section is a list of blocks; the template knows how each kind of block looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

__all__ = [
    "Absent",
    "Block",
    "Cell",
    "Chart",
    "Listing",
    "Panel",
    "Section",
    "Statement",
    "Table",
    "Verdict",
    "run_style",
]

_RUN_COLOURS = 6


def run_style(index: int) -> str:
    """Return the style class of the run at this place: six colours, told apart by dashes when they come round again."""
    return f"r-{index % _RUN_COLOURS}" + (" dashed" if index >= _RUN_COLOURS else "")


@dataclass(frozen=True)
class Panel:
    """One drawing of a chart, with a heading where the chart has several."""

    heading: str
    style: str
    drawing: Markup


@dataclass(frozen=True)
class Chart:
    """A drawing or several of them with the same axes, and how to read them.

    Attributes:
        title: What is shown.
        text: One or two sentences: how to read it.
        panels: The drawings.
        legend: (name, style) of what colours mean, where lines have no label of their own.
        small: Three panels a row instead of two.
        notes: Facts that are read off the data, a line each.
    """

    title: str
    text: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, str]] = ()
    small: bool = False
    notes: Sequence[str] = ()
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Cell:
    """A table's cell; `more` stands small below its text."""

    text: str
    style: str = ""
    title: str = ""
    more: str = ""


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways where the screen is narrow; a row's first cell is its heading."""

    title: str
    text: str
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Statement:
    """One measured fact: the measure, the sentence, and `good`, `bad`, `open` or nothing."""

    measure: str
    text: str
    sign: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a comparison found: one sentence, then the facts behind it, folded away where there are several."""

    heading: str
    sentence: str
    statements: Sequence[Statement]
    caveats: Sequence[str] = ()
    folded: bool = False
    kind: ClassVar[str] = "verdict"


@dataclass(frozen=True)
class Absent:
    """A sentence where something would stand if the run had it."""

    text: str
    kind: ClassVar[str] = "absent"


@dataclass(frozen=True)
class Listing:
    """A text that opens on demand."""

    title: str
    text: str
    kind: ClassVar[str] = "listing"


Block = object
"""A block: one of the classes above, or any with a `kind` that names a macro of the template."""


@dataclass(frozen=True)
class Section:
    """A chapter of the page; without blocks it is left out."""

    id: str
    title: str
    blocks: Sequence[Block]
    text: str = ""
