"""What is right of another image."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.candidates import Candidate, gold_texts, seeded
from cwdpo.negatives.text import normalise

__all__ = ["OtherSource"]


class _SortedTexts:
    """Different texts, sorted so that a draw does not depend on the order of the rows; in a file, not in memory.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._db = sqlite3.connect("")  # a file of its own, which goes with it
        self._db.execute("CREATE TABLE texts (text TEXT)")
        self._db.executemany("INSERT INTO texts VALUES (?)", ((text,) for text in texts))
        self._db.execute("CREATE TABLE sorted (place INTEGER PRIMARY KEY, text TEXT)")
        self._db.execute("INSERT INTO sorted SELECT NULL, text FROM texts GROUP BY text ORDER BY text")
        self._count: int = self._db.execute("SELECT COUNT(*) FROM sorted").fetchone()[0]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> str:
        return self._db.execute("SELECT text FROM sorted WHERE place = ?", (place + 1,)).fetchone()[0]


class OtherSource:
    """The chosen response of another image: easy, but there for any data.

    Args:
        groups: All rows of the stage: what is drawn from.
        seed: Fixes the draw.
    """

    name = "other"
    costly = False

    def __init__(self, groups: Sequence[PromptGroup], seed: int) -> None:
        self._answers = _SortedTexts(group.chosen.text for group in groups)
        self._seed = seed

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return as many answers of other rows as are wanted; an answer that is also gold here is drawn again."""
        return {group.id: self._draw(group, wanted[group.id]) for group in groups}

    def _draw(self, group: PromptGroup, count: int) -> list[Candidate]:
        rng = seeded(self._seed, group.id, "other")
        gold = {"", *map(normalise, gold_texts(group))}
        drawn = (self._answers[rng.randrange(len(self._answers))] for _ in range(20 * count))
        fit = dict.fromkeys(text for text in drawn if normalise(text) not in gold)
        return [Candidate(text, self.name, "easy") for text in list(fit)[:count]]
