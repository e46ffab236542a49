"""A stage's negatives: what each source gave, what was dropped, some of them to read. Part of the report, or a page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from cwdpo.errors import one_line, printable
from cwdpo.files import read_jsonl
from cwdpo.negatives.source_statistics import NegativeStatistics, ShownPrompt, SourceStatistics
from cwdpo.negatives.text import word_diff
from cwdpo.report.page_blocks import Absent, Block, Cell, Section, Table
from cwdpo.report.pictures import Card, Gallery, Remark, Thumbnails
from cwdpo.report.render import write_page
from cwdpo.report.run_record import STAGES, RunRecord
from cwdpo.report.ticks import sparkline, text_of, whole
from cwdpo.report.values import as_list, as_map, clean, number

__all__ = ["negatives_blocks", "sources_table", "write_negatives_page"]

_LOOKED_AT = 400
"""Rows of the negatives' file among which samples are chosen, so that every source is seen."""
_SAMPLES, _REASONS = 6, 6
_LONGEST = 400
"""A text is cut here."""
_FIGURE = re.compile(r"-?\d+(\.\d+)?")

_COLUMNS: tuple[tuple[str, str, Callable[[SourceStatistics], str]], ...] = (
    ("used", "Negatives of this source", lambda f: whole(f.used)),
    ("candidates", "", lambda f: whole(f.proposed)),
    ("dropped", "Candidates that the filter dropped", lambda f: whole(f.dropped)),
    ("identical", "Share of the candidates that read like a gold response", lambda f: _share(f.identical)),
    (
        "may be right",
        "Share of the candidates that say nothing a gold response does not say; look at them first",
        lambda f: _share(f.suspects),
    ),
    ("is right", "By the picture's exact meaning, share of the candidates that are right", lambda f: _share(f.right)),
    ("precision", "Share of those that may be right that are right", lambda f: _share(f.precision)),
    ("recall", "Share of the right ones among those that may be right", lambda f: _share(f.recall)),
    ("length", "Mean of words to those of the chosen response", lambda f: text_of(f.length_ratio, 2)),
    ("mean ℓ̄", "Nats per token, under the model that the stage starts from", lambda f: text_of(f.logp_mean, 2)),
    (
        "mean w_c",
        "Near 0 the negative is too easy to be trained on",
        lambda f: text_of(f.cooling_weight, 2),
    ),
    ("w_c 0…1", "Histogram", lambda f: sparkline(f.histogram) if any(f.histogram) else _NOTHING),
)
"""Heading, meaning and text of what is shown of a source; a column that no source has is left out."""
_NOTHING = text_of(None)


def negatives_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return the tables of sources, what was dropped and why, and samples; nothing where no run has negatives."""
    blocks: list[Block] = []
    for stage in reversed(STAGES):
        if figures := _figures(runs, stage):
            name = STAGES[stage]
            blocks.append(sources_table(f"Where the negatives of {name} come from", figures, runs=len(runs)))
            rows = {run.label: _rows(run, stage, "dropped.jsonl") for run in runs}
            blocks += _dropped(f"What the filter dropped in {name}", rows, examples=1)
            blocks += _samples(runs, stage)
    return blocks


def write_negatives_page(
    survey: NegativeStatistics,
    dropped: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    title: str,
    facts: Sequence[str],
    folder: Path,
) -> Path:
    """Write one HTML file about a stage's negatives.

    Args:
        survey: What is known of the negatives.
        dropped: Rows of `dropped.jsonl`.
        out: The file to write.
        title: Heading.
        facts: Short lines on what was looked at.
        folder: The run directory, that images are looked for in.

    Returns:
        `out`.

    Raises:
        RunError: It cannot be written.
    """
    text = f"{len(dropped)} candidates; all of them are listed in dropped.jsonl."
    reasons = _dropped("Reasons", {"": dropped}, examples=5, text=text) or [Absent("Nothing.")]
    if survey.without:
        reasons.append(Absent(f"{survey.without} prompts got no negative from any source and are left out."))
    thumbnails = Thumbnails()
    cards = [_shown(sample, folder, thumbnails) for sample in survey.samples]
    sections = [
        Section(
            "sources", "Where they come from", [sources_table("Sources", [(f, "") for f in survey.figures], survey)]
        ),
        Section("pictures", "Some of them", [_gallery("Drawn at random", cards)]),
        Section("dropped", "What was dropped", reasons),
    ]
    return write_page(out, title, sections, facts=facts)


def sources_table(
    title: str,
    figures: Sequence[tuple[SourceStatistics, str]],
    survey: NegativeStatistics | None = None,
    *,
    runs: int = 1,
) -> Table:
    """Return the table of sources.

    Args:
        title: Heading.
        figures: A source's figures, and the runs that have them.
        survey: Where responses were scored: under what.
        runs: How many runs there are.
    """
    rows = [[text(source) for *_, text in _COLUMNS] for source, _ in figures]
    shown = [i for i, (name, *_) in enumerate(_COLUMNS) if name == "used" or any(row[i] != _NOTHING for row in rows)]
    header = [Cell("source"), *([Cell("runs", "text")] if runs > 1 else [])]
    header += [Cell(_COLUMNS[i][0], title=_COLUMNS[i][1]) for i in shown]
    body: list[list[Cell]] = []
    for (source, who), row in zip(figures, rows, strict=True):
        head = [Cell(one_line(source.name, 40)), *([Cell(who, "text")] if runs > 1 else [])]
        body.append([*head, *(Cell(row[i]) for i in shown)])
    text = (
        "Identical: candidates that read like a gold response. May be right: those that say nothing a gold response "
        "does not say. Length: words to those of the chosen response."
    )
    if survey is not None and survey.scored:
        gold = "" if survey.chosen_logp is None else f" (chosen responses: {text_of(survey.chosen_logp, 2)})"
        text += (
            f" ℓ̄ in nats per token over {survey.scored} prompts, under the model that the stage starts from{gold}; w_c "
            f"with floor {survey.floor:g} and τ {survey.tau:g}: near 0 the negative is too easy to be trained on."
        )
    return Table(title, text, header, body)


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1%}"


def _figures(runs: Sequence[RunRecord], stage: str) -> list[tuple[SourceStatistics, str]]:
    """Return what each source gave, and which runs say the same of it."""
    found: dict[str, tuple[SourceStatistics, list[str]]] = {}
    for run in runs:
        tallies = as_map(run.json(f"negatives/{stage}/tallies.json"), "sources")
        for name, tally in tallies.items():
            source = SourceStatistics.of(name, {key: number(tally, key) for key in as_map(tally)})
            found.setdefault(str(astuple(source)), (source, []))[1].append(run.label)
    return [(source, "all" if len(who) == len(runs) else ", ".join(who)) for source, who in found.values()]


def _rows(run: RunRecord, stage: str, name: str, most: int | None = None) -> list[dict[str, Any]]:
    path = run.each[0].folder / "negatives" / stage / name
    try:
        return [as_map(clean(row)) for row in itertools.islice(read_jsonl(path), most)]
    except (OSError, ValueError):
        return []


def _dropped(
    title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], *, examples: int, text: str = ""
) -> list[Block]:
    """Put dropped candidates together by the words of their reason, whatever its figures."""
    rows: list[list[Cell]] = []
    named = any(runs)
    for label, dropped in runs.items():
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for row in dropped:
            kind = _FIGURE.sub("…", str(row.get("reason", "?")).split(" (negatives filter")[0]).rstrip("… ")
            kinds.setdefault(one_line(kind, 120), []).append(row)
        most = sorted(kinds.items(), key=lambda item: -len(item[1]))
        for kind, of_kind in most[:_REASONS] if named else most:
            for row in of_kind[:examples]:
                said = [one_line(row.get(key, ""), _LONGEST) for key in ("text", "source", "id")]
                head = [
                    *([Cell(label)] if named else []),
                    Cell(kind, "text" if named else ""),
                    Cell(whole(len(of_kind))),
                ]
                rows.append([*head, *(Cell(words, "text") for words in said)])
    header = [*([Cell("run")] if named else []), Cell("because", "text" if named else ""), Cell("dropped")]
    header += [Cell(name, "text") for name in ("for instance", "source", "row")]
    return [Table(title, text, header, rows)] if rows else []


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
            digests, thumbnails = run.each[0].json(f"negatives/{stage}/pictures.json"), Thumbnails()
            cards: list[Card] = []
            for row in list(chosen.values())[:_SAMPLES]:
                path = next(iter(as_list(row.get("images"))), None)
                digest = digests.get(path) if isinstance(path, str) else None
                negatives = [
                    ([r.get("source"), r.get("difficulty")], r.get("text", ""), "")
                    for r in _responses(row, "rejected")[:4]
                ]
                gold = _responses(row, "chosen")[0].get("text", "")
                cards.append(_card(thumbnails(run.each[0].folder, path, digest), gold, negatives))
            return [_gallery(f"Some negatives of {STAGES[stage]}{which}", cards)]
    return []


def _responses(row: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
    return [r for r in map(as_map, as_list(row.get("responses"))) if r.get("role") == role]


def _gallery(which: str, cards: Sequence[Card]) -> Gallery:
    text = (
        f"{which}, every source in turn. Words that are new against the chosen response stand out, those that are gone "
        "are struck through."
    )
    return Gallery(text, cards, "negatives")


def _shown(sample: ShownPrompt, folder: Path, thumbnails: Thumbnails) -> Card:
    image = next(iter(sample.group.images), None)
    # The rows are the user's own, read a moment ago: whatever picture they name is theirs.
    digest = image.digest() if image is not None and image.path is not None and Path(image.path).is_file() else None
    thumbnail = thumbnails(folder, image.path if image is not None else None, digest)
    negatives: list[tuple[list[object], object, str]] = []
    for n in sample.negatives:
        tags: list[object] = [n.response.source, n.response.difficulty]
        if n.logp_mean is not None:
            tags += [f"ℓ̄ {text_of(n.logp_mean, 2)}", f"w_c {text_of(n.cooling_weight, 2)}"]
        flag = "is right" if n.right else "may be right" if n.suspect else ""
        negatives.append((tags, n.response.text, flag))
    more = "" if sample.logp_mean is None else f" (ℓ̄ {text_of(sample.logp_mean, 2)})"
    return _card(thumbnail, sample.group.chosen.text, negatives, sample.others, more)


def _card(
    image: tuple[str, bool],
    gold: object,
    negatives: Iterable[tuple[Sequence[object], object, str]],
    others: Sequence[str] = (),
    more: str = "",
) -> Card:
    """Return a picture with its negatives: (tags, text, flag)."""
    title = printable(gold)[:_LONGEST]
    remarks = [
        Remark(
            " · ".join(printable(tag) for tag in tags if tag), word_diff(title, printable(text)[:_LONGEST]), flag=flag
        )
        for tags, text, flag in negatives
    ]
    return Card(*image, title + more, [printable(other) for other in others], remarks)
