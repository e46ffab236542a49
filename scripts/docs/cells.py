"""Rows of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable


def row(cells: Iterable[str]) -> str:
    """Return a table's row; nothing in a cell ends it, and outside of code nothing is HTML but a line break."""
    return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"


def plain(text: str) -> str:
    """Escape what Markdown would take for HTML, outside of code."""
    parts = text.split("`")
    escaped = (p if i % 2 else p.replace("<", "&lt;").replace("&lt;br>", "<br>") for i, p in enumerate(parts))
    return "`".join(escaped)
