"""InternVL: a plain decoder that reads pictures in tiles."""

from __future__ import annotations

from cwdpo.scoring.family import Family

__all__ = ["InternVL"]


class InternVL(Family):
    """InternVL in the layout of transformers (`…-hf`)."""

    name = "internvl"
    model_types = frozenset({"internvl"})
    shares_prefix = True
