"""The paper's tables: their rows, which arm stands for each, and the figures it prints; see `tables.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cwdpo.paper.arms import data_of

__all__ = ["COSTS", "FIGURES", "TABLES", "PaperFigure", "Row", "Table"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: As shown.
        entry: Key of `ARMS` or `STARTS`, or `BASE`.
        paper: The paper's figures by column, where it has the row.
        group: What the row belongs to.
    """

    label: str
    entry: str
    paper: Mapping[str, float] = field(default_factory=dict[str, float])
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: What it is asked for by.
        title: What it shows.
        rows: From top to bottom.
        against: Entry that the others are held against, paired by seed.
        tuned: Whether each method's learning rate is chosen (as for every other), or one rate serves all rows.
        note: What differs from the paper.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    against: str
    tuned: bool = False
    note: str = ""

    @property
    def entries(self) -> list[str]:
        """What its rows need, each once."""
        return list(dict.fromkeys([row.entry for row in self.rows] + [self.against]))


def _table(name: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> Table:
    return Table(name=name, rows=tuple(Row(**row) for row in rows), **facts)


TABLES: Mapping[str, Table] = {name: _table(name, **facts) for name, facts in data_of("tables.yaml").items()}
"""Those that compare trained models; Table 7 is one of costs."""

COSTS = "table7"
"""The table of what an update costs."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper, and the entries whose runs it is drawn from."""

    title: str
    entries: tuple[str, ...]


FIGURES: Mapping[str, PaperFigure] = {
    "fig3": PaperFigure("Stage 1: loss, entropy, captions", ("sft_followed", "sft_c_followed")),
    "fig4": PaperFigure("Stage 2: drift, calibration, distributions", ("dpo_followed", "cw_dpo_followed")),
    "fig5": PaperFigure("One-step influence", ("cw_dpo_followed",)),
    "fig6": PaperFigure("Cooling weights by difficulty", ("cw_dpo_followed",)),
}
