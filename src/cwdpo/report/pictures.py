"""Held-out pictures with what was said about them before and after, images as thumbnails in the page."""

from __future__ import annotations

import base64
import difflib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageOps

from cwdpo.report.page_blocks import Absent, Block, run_style
from cwdpo.report.run_record import RunRecord, as_list, as_map, number
from cwdpo.report.ticks import text_of

__all__ = ["Caption", "Gallery", "Picture", "picture_gallery", "thumbnail"]

_SIDE = 224
"""Longest side of a thumbnail, in pixels."""

_MOST_PIXELS = 64_000_000
_BUDGET = 3_000_000
"""Characters of images in a page; what comes after is left out, so that a page stays under 5 MB."""

_LONGEST = 600
"""A caption is cut here."""


@dataclass(frozen=True)
class Caption:
    """One caption: who said it, the words (and whether each is new against the caption before), right or wrong."""

    who: str
    style: str
    words: Sequence[tuple[str, bool]]
    right: bool | None = None
    cider: str = ""


@dataclass(frozen=True)
class Picture:
    """One held-out prompt."""

    id: str
    source: str
    pixelated: bool
    references: Sequence[str]
    captions: Sequence[Caption]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a report."""

    text: str
    pictures: Sequence[Picture]
    kind: ClassVar[str] = "gallery"


def picture_gallery(runs: Sequence[RunRecord]) -> Block:
    """Return the first held-out pictures with the captions of every run that has some."""
    having = [(i, one) for i, one in enumerate(map(_one_seed, runs)) if one.rows]
    if not having:
        return Absent("No captions were written yet: the evaluation has not finished, or `evaluation.prompts` is 0.")
    wanted = [number(as_map(run.recipe.get("evaluation")).get("samples")) for _, run in having]
    count = int(max((n for n in wanted if n is not None), default=12))
    rows = {i: {str(r.get("id")): r for r in run.rows} for i, run in having}
    ids = list(dict.fromkeys(key for i, _ in having for key in rows[i]))
    shared = [key for key in ids if all(key in rows[i] for i, _ in having)] or ids
    pictures: list[Picture] = []
    spent = 0
    for key in shared[: max(0, count)]:
        said = [(i, run, rows[i][key]) for i, run in having if key in rows[i]]
        source, pixelated = thumbnail(said[0][1].folder, said[0][2].get("image"))
        spent += len(source)
        references = [_cut(str(t)) for t in as_list(said[0][2].get("references"))[:10]]
        picture = Picture(key, source if spent < _BUDGET else "", pixelated, references, _captions(said))
        pictures.append(picture)
    if not pictures:
        return Absent("`evaluation.samples` is 0: no pictures were asked for.")
    which = f"The first {len(pictures)} held-out pictures" if len(pictures) > 1 else "The first held-out picture"
    text = f"{which}, in the order of the data, not selected. Underlined words are new against the start of the stage."
    return Gallery(text, pictures)


def _one_seed(run: RunRecord) -> RunRecord:
    """Return the run, or the first of its seeds."""
    if not run.seeds:
        return run
    first = run.seeds[0]
    return replace(first, label=f"{run.label}, seed {first.seed}", origin=run.origin)


def _captions(said: Sequence[tuple[int, RunRecord, dict[str, Any]]]) -> list[Caption]:
    """List the captions of one picture; what several runs share is listed once."""
    found: list[Caption] = []
    seen: dict[tuple[str, str], int] = {}
    for when in ("base", "before", "after"):
        for i, run, row in said:
            part = as_map(row.get(when))
            if when == "before" and run.origin == "base model":
                continue  # shown as the base model's already
            if when == "base" and not run.after_stage1 and run.origin != "base model":
                continue  # another run's Stage 1: shown as the start
            if not isinstance(part.get("caption"), str):
                continue
            caption = _cut(part["caption"])
            who = {"base": "base model", "before": f"{run.origin}, start of Stage 2", "after": run.label}[when]
            if when != "after" and (who, caption) in seen:
                continue
            seen[who, caption] = i
            before = as_map(row.get("before")).get("caption")
            words = _marked(caption, _cut(before) if when == "after" and isinstance(before, str) else None)
            right = part.get("correct")
            cider = number(part.get("cider"))
            found.append(
                Caption(
                    who,
                    run_style(i) if when == "after" else "muted",
                    words,
                    right if isinstance(right, bool) else None,
                    "" if cider is None else text_of(cider, 0),
                )
            )
    return found


def _marked(caption: str, before: str | None) -> list[tuple[str, bool]]:
    """Split a caption into runs of words, each with whether it is new against the caption before."""
    new = caption.split()
    if before is None:
        return [(" ".join(new), False)]
    found: list[tuple[str, bool]] = []
    for kind, _, _, low, high in difflib.SequenceMatcher(None, before.split(), new, autojunk=False).get_opcodes():
        if high > low:
            found.append((" ".join(new[low:high]), kind != "equal"))
    return found


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def thumbnail(folder: Path, path: object) -> tuple[str, bool]:
    """Return an image as a small data URI, and whether it is so small that it should be shown enlarged, pixel by pixel.

    Args:
        folder: The run directory; a run that was moved has its images below it.
        path: The image's path as the run noted it.

    Returns:
        An empty string where there is no readable image.
    """
    file = _find(folder, path)
    if file is None:
        return "", False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    return "", False
                opened.draft("RGB", (_SIDE, _SIDE))
                image: Image.Image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "", False
    small = max(image.size) <= 96
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=78, optimize=True)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}", small


def _find(folder: Path, path: object) -> Path | None:
    """Look for an image where the run noted it, then below the run directory."""
    if not isinstance(path, str) or not path or "\0" in path:
        return None
    given = Path(path)
    try:
        if given.is_absolute() and given.is_file():
            return given
        for i in range(1 if given.is_absolute() else 0, len(given.parts)):
            candidate = folder.joinpath(*given.parts[i:])
            if candidate.is_file():
                return candidate
    except OSError:  # a name too long for the file system
        return None
    return None
