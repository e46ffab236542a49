"""LLaVA: a plain decoder behind a projector."""

from __future__ import annotations

from cwdpo.scoring.family import Family

__all__ = ["Llava"]


class Llava(Family):
    """LLaVA and LLaVA-NeXT."""

    name = "llava"
    model_types = frozenset({"llava", "llava_next"})
    shares_prefix = True
