"""The parts of a mixture: each opened with its own format, its rows drawn as its weight or cap says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cwdpo.data.open_source import RowReader
from cwdpo.data.row_context import RowContext
from cwdpo.data.tables.raw_row import RawRow, RawTable
from cwdpo.errors import DataError
from cwdpo.files import text_digest

__all__ = ["Part", "Share"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """One source of a mixture.

    Attributes:
        path: As for `DataSource`.
        weight: How often each row is there: 2 is twice; 0.5 is every other row, drawn by the seed.
        rows: Draw this many rows by the seed; None: all. Not together with a weight.
    """

    path: str
    weight: float = 1.0
    rows: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 100 or (self.rows is not None and (self.rows < 1 or self.weight != 1)):
            raise DataError(
                f"data.sources: {self.path}: give a weight above 0 and at most 100, or rows (at least 1), not both"
            )


@dataclass(frozen=True)
class Part:
    """A source that is open.

    Attributes:
        format: Its format.
        reader: Reads its rows.
        context: Makes the context of a row.
        stem: Beginning of the ids of rows without an id; empty: the name of the row's file.
        prefix: Stands before the ids of its rows.
        share: How much of it is drawn.
        seed: For what is drawn.
        opened: The table, as long as it has not been read.
        open: Opens it again.
    """

    format: str
    reader: RowReader
    context: Callable[..., RowContext]
    stem: str
    prefix: str
    share: Share
    seed: int
    opened: list[RawTable]
    open: Callable[[], tuple[str, RawTable, RowReader]]

    def rows(self) -> Iterator[tuple[RawRow, int]]:
        """Yield the rows, each with the number of its copy, from 0."""
        share = self.share
        drawn: set[int] | None = None
        if share.rows is not None:
            count = sum(1 for _ in self.open()[1].rows)
            drawn = set(random.Random(self.seed).sample(range(count), min(count, share.rows)))
        whole, rest = divmod(share.weight, 1)
        table = self.opened.pop() if self.opened else self.open()[1]
        for place, raw in enumerate(table.rows):
            if drawn is not None:
                times = int(place in drawn)
            else:
                chance = int(text_digest(str(self.seed), share.path, str(place))[:12], 16) / 16**12 if rest else 1.0
                times = int(whole) + (chance < rest)
            for copy in range(times):
                yield raw, copy

    def name(self, found: Any, copy: int) -> str:
        """Return the id of a group in the mixture."""
        return f"{self.prefix}{found}" + (f"~{copy + 1}" if copy else "")
