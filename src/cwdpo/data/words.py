"""Words of a text, without a tokenizer that needs Java."""

from __future__ import annotations

import re

__all__ = ["words"]

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def words(text: str) -> str:
    """Return a caption as its lower-case words, separated by spaces."""
    return " ".join(_WORD.findall(text.lower()))
