"""Pictures with what is said about them: held-out captions before and after, images as thumbnails in the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.images import ImageLimits, open_image
from cwdpo.data.schema import ImageRef
from cwdpo.errors import DataError
from cwdpo.negatives.text import word_diff
from cwdpo.report.page_blocks import Absent, Block, run_style
from cwdpo.report.run_record import RunRecord
from cwdpo.report.ticks import text_of
from cwdpo.report.values import as_list, as_map, number

__all__ = ["Card", "Gallery", "Remark", "Thumbnails", "caption_gallery"]

_SIDE = 224
"""Longest side of a thumbnail, in pixels."""
_SMALL = 96
"""An image with no longer side than this is shown enlarged, pixel by pixel."""
_LIMITS = ImageLimits(max_pixels=64_000_000)
_MOST_BYTES = 64 * 2**20
_BUDGET = 3_000_000
"""Characters of images in a page; what comes after is left out, so that a page stays under 5 MB."""
_LONGEST = 600
"""A text is cut here."""


@dataclass(frozen=True)
class Remark:
    """One thing said about a picture.

    Attributes:
        who: Who said it, and what is known of it.
        words: Runs of words, each `same`, `new` or `gone`.
        style: Class of the line.
        right: Whether it is right, where that is known.
        flag: What to look at.
    """

    who: str
    words: Sequence[tuple[str, str]]
    style: str = ""
    right: bool | None = None
    flag: str = ""


@dataclass(frozen=True)
class Card:
    """A picture and what is said about it.

    Attributes:
        image: A data URI; empty where there is none to show.
        pixelated: Show it enlarged, pixel by pixel.
        title: The gold response.
        more: Further gold responses.
        remarks: What is said.
    """

    image: str
    pixelated: bool
    title: str
    more: Sequence[str]
    remarks: Sequence[Remark]


@dataclass(frozen=True)
class Gallery:
    """Some pictures; `style` is `captions` or `negatives`."""

    text: str
    cards: Sequence[Card]
    style: str
    kind: ClassVar[str] = "gallery"


class Thumbnails:
    """Small data URIs of pictures, as many as a page has room for."""

    def __init__(self) -> None:
        self._spent = 0

    def __call__(self, run: Path, path: object, digest: object = None) -> tuple[str, bool]:
        """Return a picture, and whether it is so small that it should be shown enlarged.

        Who wrote a run directory may be a stranger: a picture is shown that lies in the directory, or whose content is
        what the run recorded. No other file of this machine gets into a page.

        Args:
            run: The run directory; a run that was moved has its pictures below it.
            path: The picture's path as the run noted it.
            digest: SHA-256 of its content as the run noted it.

        Returns:
            An empty string where there is no picture to show.
        """
        content = _content(run, path, digest) if self._spent < _BUDGET else None
        if content is None:
            return "", False
        try:
            image = open_image(ImageRef(data=content), _LIMITS)
        except DataError:
            return "", False
        small = max(image.size) <= _SMALL
        image.thumbnail((_SIDE, _SIDE))
        buffer, kind = io.BytesIO(), "png" if small else "jpeg"
        image.save(buffer, kind, optimize=True, **({} if small else {"quality": 78}))
        source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        self._spent += len(source)
        return (source, small) if self._spent < _BUDGET else ("", False)


def _content(run: Path, path: object, digest: object) -> bytes | None:
    """Return the bytes of a picture that may be shown."""
    if not isinstance(path, str) or not path or "\0" in path:
        return None
    try:
        for file in _places(run, Path(path)):
            inside = file.resolve().is_relative_to(run.resolve())
            if file.is_file() and file.stat().st_size <= _MOST_BYTES and (inside or isinstance(digest, str)):
                content = file.read_bytes()
                if not isinstance(digest, str) or hashlib.sha256(content).hexdigest() == digest:
                    return content
    except OSError:  # a name too long for the file system, or a file that may not be read
        return None
    return None


def _places(run: Path, path: Path) -> Iterator[Path]:
    """Yield where a picture may lie: where the run noted it, then below the run directory."""
    if path.is_absolute():
        yield path
    for i in range(1 if path.is_absolute() else 0, len(path.parts)):
        yield run.joinpath(*path.parts[i:])


def caption_gallery(runs: Sequence[RunRecord]) -> Block:
    """Return the first held-out pictures with the captions of every run that has some."""
    having = [(i, one) for i, one in enumerate(map(_one_seed, runs)) if one.evaluated]
    if not having:
        return Absent("No captions were written yet: the evaluation has not finished, or `evaluation.prompts` is 0.")
    asked = [number(run.recipe, "evaluation", "samples") for _, run in having]
    count = int(max((n for n in asked if n is not None), default=12))
    rows = {i: {str(r.get("id")): r for r in run.evaluated} for i, run in having}
    ids = list(dict.fromkeys(key for i, _ in having for key in rows[i]))
    shared = [key for key in ids if all(key in rows[i] for i, _ in having)] or ids
    thumbnails, cards = Thumbnails(), list[Card]()
    for key in shared[: max(0, count)]:
        said = [(i, run, rows[i][key]) for i, run in having if key in rows[i]]
        _, run, row = said[0]
        golds = [_cut(str(t)) for t in as_list(row, "references")[:10]] or [key]
        image = thumbnails(run.folder, row.get("image"), row.get("image_digest"))
        cards.append(Card(*image, golds[0], golds[1:], _captions(said)))
    if not cards:
        return Absent("`evaluation.samples` is 0: no pictures were asked for.")
    which = f"The first {len(cards)} held-out pictures" if len(cards) > 1 else "The first held-out picture"
    text = f"{which}, in the order of the data, not selected. Underlined words are new against the start of the stage."
    return Gallery(text, cards, "captions")


def _one_seed(run: RunRecord) -> RunRecord:
    """Return the run, or the first of its seeds."""
    if not run.seeds:
        return run
    return replace(run.seeds[0], label=f"{run.label}, seed {run.seeds[0].seed}", origin=run.origin)


def _captions(said: Sequence[tuple[int, RunRecord, Mapping[str, Any]]]) -> list[Remark]:
    """List the captions of one picture; what several runs share is listed once."""
    remarks: dict[tuple[str, str, int], Remark] = {}
    for when in ("base", "before", "after"):
        for i, run, row in said:
            part = as_map(row.get(when))
            if when == "before" and run.origin == "base model":
                continue  # shown as the base model's already
            if when == "base" and not run.after_stage1 and run.origin != "base model":
                continue  # another run's Stage 1: shown as the start
            if not isinstance(part.get("caption"), str):
                continue
            caption, last = _cut(part["caption"]), when == "after"
            who = {"base": "base model", "before": f"{run.origin}, start of Stage 2", "after": run.label}[when]
            before = as_map(row.get("before")).get("caption")
            words = word_diff(_cut(before), caption) if last and isinstance(before, str) else [("same", caption)]
            words = [(kind, text) for kind, text in words if kind != "gone" and text]
            right, cider = part.get("correct"), number(part, "cider")
            right = right if isinstance(right, bool) else None
            score = "" if cider is None or right is not None else f" · CIDEr {text_of(cider, 0)}"
            style = run_style(i) if last else "muted"
            remarks.setdefault((who, caption, i if last else -1), Remark(f"{who}{score}", words, style, right))
    return list(remarks.values())


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
