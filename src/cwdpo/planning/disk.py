"""Bytes on disk: the model that a stage ends with, and a checkpoint from which it goes on."""

from __future__ import annotations

from cwdpo.planning.gpus import Layout
from cwdpo.planning.meta_models import Size

__all__ = ["checkpoint", "saved_model"]

_MOMENTS = 8
_MASTERS = 4


def saved_model(size: Size, layout: Layout, ranks: int, half: bool, *, adapters: bool) -> int:
    """Return the bytes of a saved model, or of its adapters; DeepSpeed saves them in the type that it computes in."""
    if not _by_deepspeed(layout, ranks):
        return 4 * size.trained if adapters else size.bytes
    return _width(half) * (size.trained if adapters else size.weights)


def checkpoint(size: Size, layout: Layout, ranks: int, half: bool, *, adapters: bool) -> int:
    """Return the bytes of a checkpoint, which DDP writes once and sharing processes in parts.

    DeepSpeed's holds the saved model, from which negatives are refreshed and the best weights put back, and its own
    files beside it: float32 weights and AdamW's moments of what is trained, with ZeRO-2 the model once more, and what
    is frozen of a model without adapters.
    """
    model = saved_model(size, layout, ranks, half, adapters=adapters)
    if not _by_deepspeed(layout, ranks):
        return model + _MOMENTS * size.trained
    again = model if layout.kind == "zero2" else 0
    frozen = 0 if adapters else _width(half) * (size.weights - size.trained)
    return model + again + frozen + (_MASTERS + _MOMENTS) * size.trained


def _by_deepspeed(layout: Layout, ranks: int) -> bool:
    return ranks > 1 and layout.kind in ("zero2", "zero3")


def _width(half: bool) -> int:
    return 2 if half else 4
