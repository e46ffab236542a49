"""The embedded world: pictures of coloured shapes whose captions have an exact meaning."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["base_path"]


def base_path() -> Path:
    """Return the folder of the shipped base model: weights, tokenizer, processor and `base_card.json`."""
    return Path(str(files(__name__) / "base"))
