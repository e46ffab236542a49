"""Right answers of other images."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import ClassVar

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.source import Candidate, Source, SourceContext, gold_texts, seeded
from cwdpo.negatives.text import normalise

__all__ = ["OtherSource"]


class _SortedTexts:
    """Distinct texts, sorted so that a draw does not depend on the order of the rows; on disk, not in memory.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._db = sqlite3.connect("")  # a temporary file
        self._db.execute("CREATE TABLE texts (text TEXT)")
        self._db.executemany("INSERT INTO texts VALUES (?)", ((text,) for text in texts))
        self._db.execute("CREATE TABLE sorted (place INTEGER PRIMARY KEY, text TEXT)")
        self._db.execute("INSERT INTO sorted SELECT NULL, text FROM texts GROUP BY text ORDER BY text")
        self._count: int = self._db.execute("SELECT COUNT(*) FROM sorted").fetchone()[0]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> str:
        return self._db.execute("SELECT text FROM sorted WHERE place = ?", (place + 1,)).fetchone()[0]


class OtherSource(Source):
    """The chosen response of another image: easy, but there for any data."""

    name: ClassVar[str] = "other"
    order: ClassVar[int] = 1

    def candidates(self, group: PromptGroup, count: int, context: SourceContext) -> Sequence[Candidate]:
        """Return answers of other rows; one that is also gold here is drawn again."""
        answers: _SortedTexts = context.once(self.name, lambda: _SortedTexts(g.chosen.text for g in context.rows))
        rng = seeded(context.seed, group.id, "other")
        gold = {"", *map(normalise, gold_texts(group))}
        drawn = (answers[rng.randrange(len(answers))] for _ in range(20 * count))
        fit = dict.fromkeys(text for text in drawn if normalise(text) not in gold)
        return [Candidate(text, "easy") for text in list(fit)[:count]]
