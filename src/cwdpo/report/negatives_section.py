"""The negatives of the runs: what each source gave, what was dropped, and some of them to read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.errors import one_line
from cwdpo.files import read_jsonl
from cwdpo.negatives.text import differences
from cwdpo.report.page_blocks import Block, Cell, Table
from cwdpo.report.pictures import thumbnail
from cwdpo.report.run_record import RunRecord, as_list, as_map, number
from cwdpo.report.ticks import text_of

__all__ = ["NegativeSamples", "negatives_blocks"]

_STAGES = {"stage1": "Stage 1", "stage2": "Stage 2"}
_LOOKED_AT = 400
"""Rows of the negatives' file among which samples are chosen, so that every source is seen."""
_SAMPLES = 6
_REASONS = 6
_LONGEST = 400
"""A text is cut here."""


@dataclass(frozen=True)
class NegativeSample:
    """A prompt: picture, chosen response, and its negatives as (source and difficulty, runs of words)."""

    source: str
    pixelated: bool
    chosen: str
    negatives: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class NegativeSamples:
    """Some prompts with their negatives."""

    text: str
    samples: Sequence[NegativeSample]
    kind: ClassVar[str] = "negatives"


def negatives_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return the tables of sources, what was dropped and why, and samples; nothing where no run has negatives."""
    blocks: list[Block] = []
    for stage in ("stage2", "stage1"):
        if table := _table(runs, stage):
            blocks.append(table)
            blocks += [b for b in (_dropped(runs, stage), _samples(runs, stage)) if b is not None]
    return blocks


# -- figures by source -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    key: str
    name: str
    title: str
    of: str = "proposed"


_SHARES = (
    _Column("identical", "identical", "Share of the candidates that read like a gold response"),
    _Column("suspects", "may be right", "Share of the candidates that say nothing a gold response does not say"),
    _Column("right", "is right", "By the picture's exact meaning, share of the candidates that are right", "exact"),
)


def _table(runs: Sequence[RunRecord], stage: str) -> Table | None:
    rows: dict[str, tuple[list[str], str, list[Cell]]] = {}
    for run in runs:
        tallies, counts = run.tallies.get(stage, {}), run.negatives.get(stage, {})
        for name in dict.fromkeys([*tallies, *(k for k in counts if k != "none")]):
            cells = _cells(as_map(tallies.get(name)), number(counts.get(name)))
            row = rows.setdefault(f"{name}/{[c.text for c in cells]}", ([], name, cells))
            row[0].append(run.label)
    if not rows:
        return None
    several = len(runs) > 1
    header = [Cell("source"), *([Cell("runs", "text")] if several else []), Cell("used"), Cell("candidates")]
    header += [Cell("dropped"), *(Cell(c.name, title=c.title) for c in _SHARES)]
    header.append(Cell("length", title="Mean of words to those of the chosen response"))
    body: list[list[Cell]] = []
    for labels, name, cells in rows.values():
        who = "all" if len(labels) == len(runs) else ", ".join(labels)
        body.append([Cell(one_line(name, 40)), *([Cell(who, "text")] if several else []), *cells])
    text = (
        "Identical: candidates that read like a gold response. May be right: those that say nothing a gold response "
        "does not say; look at them first. Length: words to those of the chosen response."
    )
    return Table(f"Where the negatives of {_STAGES[stage]} come from", text, header, body)


def _cells(tally: Mapping[str, Any], used: float | None) -> list[Cell]:
    used = number(tally.get("used")) if used is None else used
    cells = [Cell(_count(used)), *(Cell(_count(number(tally.get(k)))) for k in ("proposed", "dropped"))]
    for column in _SHARES:
        part, whole = number(tally.get(column.key)), number(tally.get(column.of))
        cells.append(Cell("–" if part is None or not whole else f"{part / whole:.1%}"))
    length, whole = number(tally.get("length_ratio")), number(tally.get("proposed"))
    return [*cells, Cell("–" if length is None or not whole else text_of(length / whole, 2))]


def _count(value: float | None) -> str:
    return "–" if value is None else f"{round(value):,}".replace(",", " ")


# -- what was dropped, and some to read --------------------------------------------------------------------------------


def _rows(run: RunRecord, stage: str, name: str, most: int | None = None) -> list[dict[str, Any]]:
    path = run.each[0].folder / "negatives" / stage / name
    if not path.is_file():
        return []
    try:
        return [as_map(row) for row in itertools.islice(read_jsonl(path), most)]
    except (OSError, ValueError):
        return []


def _dropped(runs: Sequence[RunRecord], stage: str) -> Table | None:
    rows: list[list[Cell]] = []
    for run in runs:
        reasons: dict[str, list[dict[str, Any]]] = {}
        for row in _rows(run, stage, "dropped.jsonl"):
            reason = str(row.get("reason", "?")).split(" (negatives filter")[0].rstrip("-0123456789. ")
            reasons.setdefault(reason, []).append(row)
        for reason, found in sorted(reasons.items(), key=lambda item: -len(item[1]))[:_REASONS]:
            example = one_line(str(found[0].get("text", "")), 160)
            said = [Cell(_count(len(found))), Cell(one_line(reason, 120), "text"), Cell(example, "text")]
            rows.append([Cell(run.label), *said])
    if not rows:
        return None
    header = [Cell("run"), Cell("dropped"), Cell("because", "text"), Cell("for instance", "text")]
    return Table(f"What the filter dropped in {_STAGES[stage]}", "", header, rows)


def _samples(runs: Sequence[RunRecord], stage: str) -> NegativeSamples | None:
    """Return prompts of the first run that has some, every source in turn."""
    for run in runs:
        waiting: dict[str, list[dict[str, Any]]] = {}
        for row in _rows(run, stage, "groups.jsonl", _LOOKED_AT):
            for source in {str(r.get("source")) for r in _responses(row, "rejected")}:
                waiting.setdefault(source, []).append(row)
        found: dict[str, NegativeSample] = {}
        while waiting and len(found) < _SAMPLES:
            for source in sorted(waiting):
                row = waiting[source].pop(0)
                sample = _sample(run, row) if str(row.get("id")) not in found else None
                if sample is not None and len(found) < _SAMPLES:
                    found[str(row.get("id"))] = sample
            waiting = {source: rows for source, rows in waiting.items() if rows}
        if found:
            which = f" of {run.label}" if len(runs) > 1 else ""
            text = (
                f"Some negatives of {_STAGES[stage]}{which}, every source in turn. Words that are new against the "
                "chosen response stand out, those that are gone are struck through."
            )
            return NegativeSamples(text, list(found.values()))
    return None


def _responses(row: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
    return [r for r in map(as_map, as_list(row.get("responses"))) if r.get("role") == role]


def _sample(run: RunRecord, row: Mapping[str, Any]) -> NegativeSample | None:
    chosen, rejected = _responses(row, "chosen"), _responses(row, "rejected")
    if not chosen or not rejected:
        return None
    gold = str(chosen[0].get("text", ""))[:_LONGEST]
    images = as_list(row.get("images"))
    source, pixelated = thumbnail(_image_folder(run), images[0] if images else None)
    negatives: list[tuple[str, Sequence[tuple[str, str]]]] = []
    for response in rejected[:4]:
        tags = [str(response[key]) for key in ("source", "difficulty") if response.get(key)]
        negatives.append((" · ".join(tags), differences(gold, str(response.get("text", ""))[:_LONGEST])))
    return NegativeSample(source, pixelated, gold, negatives)


def _image_folder(run: RunRecord) -> Path:
    return run.each[0].folder
