"""A stage's negatives as one HTML file: figures by source, pictures with word differences, what was dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwdpo.errors import printable
from cwdpo.negatives.source_statistics import NegativeStatistics, ShownPrompt, SourceStatistics
from cwdpo.negatives.text import word_diff
from cwdpo.report.negatives_section import SHARES
from cwdpo.report.page_blocks import Absent, Block, Cell, Section, Table
from cwdpo.report.pictures import Card, Gallery, Remark, Thumbnails
from cwdpo.report.render import write_page
from cwdpo.report.ticks import sparkline, text_of

__all__ = ["write_negatives_page"]

_EXAMPLES = 5
"""Dropped candidates shown for each reason."""

_FIGURE = re.compile(r"-?\d+(\.\d+)?")


def write_negatives_page(
    survey: NegativeStatistics,
    dropped: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    title: str,
    facts: Sequence[str],
    folder: Path,
) -> Path:
    """Write the page.

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
    sections = [
        Section("sources", "Where they come from", [_sources(survey)]),
        Section("pictures", "Some of them", [_samples(survey, folder)]),
        Section("dropped", "What was dropped", _dropped(dropped, survey.without)),
    ]
    return write_page(out, title, sections, facts=facts)


def _sources(survey: NegativeStatistics) -> Table:
    exact = any(f.right is not None for f in survey.figures)
    names = {name: SHARES[name] for name in ("identical", "suspects", *(["right"] if exact else []))}
    if exact:
        names |= {"precision": ("precision", "Share of those that may be right that are right")}
        names |= {"recall": ("recall", "Share of the right ones among those that may be right")}
    header = [Cell(name) for name in ("source", "used", "candidates", "dropped")]
    header += [Cell(name, title=title) for name, title in names.values()]
    header += [Cell("length"), *(map(Cell, ("mean ℓ̄", "mean w_c", "w_c from 0 to 1")) if survey.scored else ())]
    rows = [[Cell(printable(f.name)), *map(Cell, _row(f, names, bool(survey.scored)))] for f in survey.figures]
    text = (
        "Identical: candidates that read like a gold response. May be right: those that say nothing a gold response "
        "does not say. Length: words to those of the chosen response."
    )
    if survey.scored:
        gold = "" if survey.chosen_logp is None else f" (chosen responses: {text_of(survey.chosen_logp, 2)})"
        text += (
            f" ℓ̄ in nats per token over {survey.scored} prompts, under the model that the stage starts from{gold}; w_c "
            f"with floor {survey.floor:g} and τ {survey.tau:g}: near 0 the negative is too easy to be trained on."
        )
    return Table("Sources", text, header, rows)


def _row(f: SourceStatistics, shares: Mapping[str, Any], scored: bool) -> list[str]:
    values = [getattr(f, name) for name in shares]
    cells = [*map(str, (f.used, f.proposed, f.dropped)), *("–" if v is None else f"{v:.1%}" for v in values)]
    more = [text_of(f.logp_mean, 2), text_of(f.cooling_weight, 2), sparkline(f.histogram)] if scored else []
    return [*cells, text_of(f.length_ratio, 2), *more]


def _samples(survey: NegativeStatistics, folder: Path) -> Block:
    thumbnails = Thumbnails()
    text = (
        "Drawn at random, every source in turn. Words that are new against the chosen response stand out, those that "
        "are gone are struck through."
    )
    return Gallery(text, [_card(sample, folder, thumbnails) for sample in survey.samples], "negatives")


def _card(sample: ShownPrompt, folder: Path, thumbnails: Thumbnails) -> Card:
    image, gold = next(iter(sample.group.images), None), printable(sample.group.chosen.text)
    # The rows are the user's own, read a moment ago: whatever picture they name is theirs.
    digest = image.digest() if image is not None and image.path is not None and Path(image.path).is_file() else None
    remarks: list[Remark] = []
    for n in sample.negatives:
        tags = [n.response.source, n.response.difficulty]
        if n.logp_mean is not None:
            tags += [f"ℓ̄ {text_of(n.logp_mean, 2)}", f"w_c {text_of(n.cooling_weight, 2)}"]
        flag = "is right" if n.right else "may be right" if n.suspect else ""
        words = word_diff(gold, printable(n.response.text))
        remarks.append(Remark(" · ".join(map(printable, filter(None, tags))), words, flag=flag))
    title = gold if sample.logp_mean is None else f"{gold} (ℓ̄ {text_of(sample.logp_mean, 2)})"
    thumbnail = thumbnails(folder, image.path if image is not None else None, digest)
    return Card(*thumbnail, title, [printable(text) for text in sample.others], remarks)


def _dropped(dropped: Sequence[Mapping[str, Any]], without: int) -> list[Block]:
    """Put dropped candidates together by the words of their reason, whatever its figures."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in dropped:
        kind = _FIGURE.sub("…", str(row["reason"]).split(" (negatives filter")[0]).rstrip("… ")
        kinds.setdefault(printable(kind), []).append(row)
    rows: list[list[Cell]] = []
    for kind, of_kind in sorted(kinds.items(), key=lambda item: -len(item[1])):
        for row in of_kind[:_EXAMPLES]:
            said = [printable(row.get(key, "")) for key in ("text", "source", "id")]
            rows.append([Cell(kind), Cell(str(len(of_kind))), *(Cell(text, "text") for text in said)])
    header = [Cell("because"), Cell("dropped"), *(Cell(name, "text") for name in ("for instance", "source", "row"))]
    text = f"{len(dropped)} candidates; all of them are listed in dropped.jsonl."
    blocks: list[Block] = [Table("Reasons", text, header, rows) if rows else Absent("Nothing.")]
    if without:
        blocks.append(Absent(f"{without} prompts got no negative from any source and are left out."))
    return blocks
