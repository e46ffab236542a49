"""Bytes on disk: the model that a stage ends with, and a checkpoint from which it goes on."""

from __future__ import annotations

from cwdpo.planning.meta_models import Size

__all__ = ["checkpoint", "saved_model"]

_MOMENTS = 8


def saved_model(size: Size, *, adapters: bool) -> int:
    """Return the bytes of a saved model, or of its adapters."""
    return 4 * size.trained if adapters else size.bytes


def checkpoint(size: Size, *, adapters: bool) -> int:
    """Return the bytes of a checkpoint: model and AdamW's moments, in one piece (DDP) or in shards (FSDP2)."""
    return saved_model(size, adapters=adapters) + _MOMENTS * size.trained
