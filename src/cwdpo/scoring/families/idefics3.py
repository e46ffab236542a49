"""Idefics3: a plain decoder that reads pictures in tiles."""

from __future__ import annotations

from cwdpo.scoring.family import Family

__all__ = ["Idefics3"]


class Idefics3(Family):
    """Idefics3 and SmolVLM."""

    name = "idefics3"
    model_types = frozenset({"idefics3", "smolvlm"})
    shares_prefix = True
