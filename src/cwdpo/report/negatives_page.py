"""A stage's negatives as one HTML file: figures by source, what was dropped, pictures with word differences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from cwdpo._version import __version__
from cwdpo.errors import RunError, one_line
from cwdpo.files import write_text
from cwdpo.negatives.source_statistics import Sample, Survey
from cwdpo.negatives.text import differences
from cwdpo.report.pictures import thumbnail

__all__ = ["write_negatives_page"]

_BUDGET = 3_000_000
"""Characters of images in a page; what comes after is shown without."""

_EXAMPLES = 5
"""Dropped candidates shown for each reason."""


_FIGURE = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class _Picture:
    sample: Sample
    source: str
    pixelated: bool
    negatives: list[tuple[Any, list[tuple[str, str]]]]


def write_negatives_page(
    survey: Survey, dropped: Sequence[Mapping[str, Any]], out: Path, *, title: str, facts: Sequence[str], folder: Path
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
    templates = files("cwdpo.report") / "templates"
    names = ("negatives.html.j2", "style.css", "negatives.css")
    sources = {name: (templates / name).read_text("utf-8") for name in names}
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("negatives.html.j2").render(
        title=title,
        facts=facts,
        survey=survey,
        exact=any(f.right is not None for f in survey.figures),
        tallest={f.name: max(1, *f.histogram) for f in survey.figures},
        pictures=_pictures(survey, folder),
        dropped=_by_reason(dropped),
        dropped_count=len(dropped),
        style=Markup(sources["style.css"] + sources["negatives.css"]),
        version=__version__,
    )
    try:
        write_text(out, page)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or one_line(error)}; choose another file") from None
    return out


def _pictures(survey: Survey, folder: Path) -> list[_Picture]:
    found: list[_Picture] = []
    spent = 0
    for sample in survey.samples:
        path = sample.group.images[0].path if sample.group.images else None
        source, pixelated = thumbnail(folder, path)
        spent += len(source)
        gold = sample.group.chosen.text
        negatives = [(n, differences(gold, n.response.text)) for n in sample.negatives]
        found.append(_Picture(sample, source if spent < _BUDGET else "", pixelated, negatives))
    return found


def _by_reason(dropped: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, list[Mapping[str, Any]]]]:
    """Put dropped candidates together by the words of their reason, whatever its figures."""
    kinds = [str(row["reason"]).split(" (negatives filter")[0] for row in dropped]
    kinds = [_FIGURE.sub("…", kind).rstrip("… ") for kind in kinds]
    examples: dict[str, list[Mapping[str, Any]]] = {}
    for kind, row in zip(kinds, dropped, strict=True):
        if len(examples.setdefault(kind, [])) < _EXAMPLES:
            examples[kind].append(row)
    return [(kind, count, examples[kind]) for kind, count in Counter(kinds).most_common()]
