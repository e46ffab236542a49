"""The negatives of the runs: what each source gave, what was dropped, and some of them to read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.errors import one_line
from cwdpo.files import read_jsonl
from cwdpo.negatives.text import word_diff
from cwdpo.report.page_blocks import Block, Cell, Table
from cwdpo.report.pictures import Card, Gallery, Remark, Thumbnails
from cwdpo.report.run_record import STAGES, RunRecord
from cwdpo.report.ticks import text_of, whole
from cwdpo.report.values import as_list, as_map, clean, number

__all__ = ["SHARES", "negatives_blocks"]

_LOOKED_AT = 400
"""Rows of the negatives' file among which samples are chosen, so that every source is seen."""
_SAMPLES, _REASONS = 6, 6
_LONGEST = 400
"""A text is cut here."""

SHARES = {
    "identical": ("identical", "Share of the candidates that read like a gold response"),
    "suspects": ("may be right", "Share of the candidates that say nothing a gold response does not say"),
    "right": ("is right", "By the picture's exact meaning, share of the candidates that are right"),
}
"""Shares of the candidates: heading and meaning."""


def negatives_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return the tables of sources, what was dropped and why, and samples; nothing where no run has negatives."""
    blocks: list[Block] = []
    for stage in reversed(STAGES):
        if table := _sources(runs, stage):
            blocks += [table, *_dropped(runs, stage), *_samples(runs, stage)]
    return blocks


def _sources(runs: Sequence[RunRecord], stage: str) -> Table | None:
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        tallies = as_map(run.json(f"negatives/{stage}/tallies.json"), "sources")
        counts = run.json(f"negatives/{stage}/counts.json")
        for name in dict.fromkeys([*tallies, *(k for k in counts if k != "none")]):
            row = (name, *_cells(as_map(tallies, name), number(counts, name)))
            rows.setdefault(row, []).append(run.label)
    if not rows:
        return None
    several = len(runs) > 1
    header = [Cell("source"), *([Cell("runs", "text")] if several else []), Cell("used"), Cell("candidates")]
    header += [Cell("dropped"), *(Cell(name, title=title) for name, title in SHARES.values())]
    header.append(Cell("length", title="Mean of words to those of the chosen response"))
    body: list[list[Cell]] = []
    for (name, *cells), labels in rows.items():
        who = "all" if len(labels) == len(runs) else ", ".join(labels)
        body.append([Cell(one_line(name, 40)), *([Cell(who, "text")] if several else []), *map(Cell, cells)])
    text = (
        "Identical: candidates that read like a gold response. May be right: those that say nothing a gold response "
        "does not say; look at them first. Length: words to those of the chosen response."
    )
    return Table(f"Where the negatives of {STAGES[stage]} come from", text, header, body)


def _cells(tally: Mapping[str, Any], used: float | None) -> list[str]:
    proposed = number(tally, "proposed")
    cells = [number(tally, "used") if used is None else used, proposed, number(tally, "dropped")]
    shares: list[str] = []
    for name in SHARES:
        part, of = number(tally, name), number(tally, "exact") if name == "right" else proposed
        shares.append("–" if part is None or not of else f"{part / of:.1%}")
    length = number(tally, "length_ratio")
    return [*map(whole, cells), *shares, "–" if length is None or not proposed else text_of(length / proposed, 2)]


def _rows(run: RunRecord, stage: str, name: str, most: int | None = None) -> list[dict[str, Any]]:
    path = run.each[0].folder / "negatives" / stage / name
    try:
        return [as_map(clean(row)) for row in itertools.islice(read_jsonl(path), most)]
    except (OSError, ValueError):
        return []


def _dropped(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    rows: list[list[Cell]] = []
    for run in runs:
        reasons: dict[str, list[dict[str, Any]]] = {}
        for row in _rows(run, stage, "dropped.jsonl"):
            reason = str(row.get("reason", "?")).split(" (negatives filter")[0].rstrip("-0123456789. ")
            reasons.setdefault(reason, []).append(row)
        for reason, dropped in sorted(reasons.items(), key=lambda item: -len(item[1]))[:_REASONS]:
            said = [one_line(reason, 120), one_line(dropped[0].get("text", ""), 160)]
            rows.append([Cell(run.label), Cell(whole(len(dropped))), *(Cell(text, "text") for text in said)])
    header = [Cell("run"), Cell("dropped"), Cell("because", "text"), Cell("for instance", "text")]
    return [Table(f"What the filter dropped in {STAGES[stage]}", "", header, rows)] if rows else []


def _samples(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return prompts of the first run that has some, every source in turn."""
    for run in runs:
        waiting: dict[str, list[dict[str, Any]]] = {}
        for row in _rows(run, stage, "groups.jsonl", _LOOKED_AT):
            for source in {str(r.get("source")) for r in _responses(row, "rejected")}:
                waiting.setdefault(source, []).append(row)
        turns = itertools.zip_longest(*(waiting[source] for source in sorted(waiting)))
        chosen = {str(row.get("id")): row for turn in turns for row in turn if row and _responses(row, "chosen")}
        if chosen:
            which = f" of {run.label}" if len(runs) > 1 else ""
            text = (
                f"Some negatives of {STAGES[stage]}{which}, every source in turn. Words that are new against the "
                "chosen response stand out, those that are gone are struck through."
            )
            digests, thumbnails = run.each[0].json(f"negatives/{stage}/pictures.json"), Thumbnails()
            rows = list(chosen.values())[:_SAMPLES]
            return [Gallery(text, [_card(run.each[0], row, digests, thumbnails) for row in rows], "negatives")]
    return []


def _responses(row: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
    return [r for r in map(as_map, as_list(row.get("responses"))) if r.get("role") == role]


def _card(run: RunRecord, row: Mapping[str, Any], digests: Mapping[str, Any], thumbnails: Thumbnails) -> Card:
    gold = str(_responses(row, "chosen")[0].get("text", ""))[:_LONGEST]
    path = next(iter(as_list(row.get("images"))), None)
    image = thumbnails(run.folder, path, digests.get(path) if isinstance(path, str) else None)
    remarks: list[Remark] = []
    for response in _responses(row, "rejected")[:4]:
        tags = [str(response[key]) for key in ("source", "difficulty") if response.get(key)]
        remarks.append(Remark(" · ".join(tags), word_diff(gold, str(response.get("text", ""))[:_LONGEST])))
    return Card(*image, gold, (), remarks)
