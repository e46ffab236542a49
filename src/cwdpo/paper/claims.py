"""The paper's claims, and questions of ours, each with what is measured for it; see `claims.yaml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cwdpo.paper.arms import data_of

__all__ = ["CLAIMS", "Claim", "Contrast"]


@dataclass(frozen=True)
class Contrast:
    """One entry minus another in a measure, and the sign that the claim gives it.

    Attributes:
        one: Entry.
        other: Entry.
        measure: Key of `MEASURES`.
        sign: +1 where `one` is claimed to be higher, -1 lower.
        tuned: Each side at its own chosen learning rate.
    """

    one: str
    other: str
    measure: str
    sign: int
    tuned: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        where: Place in the paper, or `beyond` for questions of ours.
        sentence: What is claimed.
        contrasts: What was measured for it.
        source: Tables or figures whose runs it needs.
        other: Key of another way to judge it: `costs`, `influence`, `order`, `steps`.
        reason: Why it cannot be tested here; where this stands, nothing else does.
        every: It says something of each contrast: one that goes the other way refutes it.
    """

    where: str
    sentence: str
    contrasts: tuple[Contrast, ...] = ()
    source: tuple[str, ...] = ()
    other: str = ""
    reason: str = ""
    every: bool = False


def _claim(row: Mapping[str, Any]) -> Claim:
    tuned, rest = row.get("tuned", False), {k: v for k, v in row.items() if k not in ("contrasts", "tuned", "source")}
    contrasts = tuple(c for text in row.get("contrasts", ()) for c in _contrasts(text, tuned))
    return Claim(**rest, contrasts=contrasts, source=tuple(row.get("source", ())))


def _contrasts(text: str, tuned: bool) -> Iterator[Contrast]:
    """Read `one > other: measures`."""
    sides, _, measures = text.partition(": ")
    one, sign, other = sides.split()
    for measure in measures.split():
        yield Contrast(one, other, measure, {">": +1, "<": -1}[sign], tuned)


CLAIMS = tuple(_claim(row) for row in data_of("claims.yaml"))
