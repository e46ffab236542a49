"""Sections put into one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import errno
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from cwdpo._version import __version__
from cwdpo.errors import RunError, one_line, printable
from cwdpo.files import write_text
from cwdpo.report.page_blocks import Section

__all__ = ["write_page"]


def write_page(out: Path, title: str, sections: Sequence[Section], *, facts: Sequence[str] = (), **more: Any) -> Path:
    """Write a page.

    Args:
        out: The file.
        title: Heading.
        sections: Its chapters; those without blocks are left out.
        facts: Short lines below the heading.
        **more: What else the template shows: `runs` (label, about, style) and how many `folders` they come from.

    Returns:
        `out`.

    Raises:
        RunError: It cannot be written.
    """
    folder = files("cwdpo.report") / "templates"
    sources = {name: (folder / name).read_text("utf-8") for name in ("page.html.j2", "style.css", "script.js")}
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["ticked"] = _ticked
    script = sources["script.js"]
    page = environment.get_template("page.html.j2").render(
        title=title,
        facts=facts,
        sections=[section for section in sections if section.blocks],
        style=Markup(sources["style.css"]),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        version=__version__,
        **({"runs": [], "folders": 0} | more),
    )
    try:
        write_text(out, printable(page))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # another file helps nobody
        raise RunError(f"{out}: cannot be written: {error.strerror or one_line(error)}; choose another file") from None
    return out


def _ticked(text: str) -> Markup:
    """Escape a sentence and set what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return Markup("{}").format(text)
    return Markup("").join(Markup("<code>{}</code>" if i % 2 else "{}").format(p) for i, p in enumerate(parts))
