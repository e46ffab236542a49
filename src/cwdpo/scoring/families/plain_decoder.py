"""Families without peculiarities: a plain decoder reads what vision tower and projector made of the pictures."""

from __future__ import annotations

from cwdpo.scoring.family import Family

__all__ = ["PlainDecoder"]


class PlainDecoder(Family):
    """LLaVA and LLaVA-NeXT, Idefics3 and SmolVLM, InternVL in the layout of transformers (`…-hf`)."""

    name = "plain_decoder"
    model_types = frozenset({"llava", "llava_next", "idefics3", "smolvlm", "internvl"})
    shares_prefix = True
