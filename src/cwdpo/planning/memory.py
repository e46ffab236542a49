"""Bytes on one GPU: what a step takes where everything is whole, laid out over processes that share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cwdpo.planning.gpus import Layout
from cwdpo.planning.meta_models import Size
from cwdpo.planning.step_cost import Taken

__all__ = ["RESERVE", "gathered_layers", "held", "moving", "standing", "weights"]

GIB = 2**30
RESERVE = 1.5 * GIB
"""What torch, CUDA and the library of collectives take beside tensors; an assumption."""
FRAGMENTS = 0.04
"""Share of the tensors' bytes that torch's allocator holds and cannot use; an assumption."""
_MOMENTS = 8


def weights(size: Size, layout: Layout, ranks: int) -> int:
    """Return the bytes of the weights that a process holds between steps."""
    if ranks == 1 or not layout.shares_weights:
        return size.bytes
    return 0 if layout.offload else size.bytes // ranks


def moving(size: Size, layout: Layout, ranks: int, half: bool) -> int:
    """Return the bytes that come and go where weights are shared: two layers at once, and what is in no layer."""
    if ranks == 1 or not layout.shares_weights:
        return 0
    return int(_as_gathered(size, half) * (size.outside + 2 * size.block))


def gathered_layers(size: Size, half: bool) -> float:
    """Return the bytes that a GPU gets where all layers of a shared model are gathered once."""
    return _as_gathered(size, half) * (size.bytes - size.outside)


def _as_gathered(size: Size, half: bool) -> float:
    """Return the share of the weights' bytes that travels: float32 weights are gathered in bfloat16."""
    return 0.5 if half and size.bytes >= 4 * size.weights else 1.0


def standing(size: Size, layout: Layout, ranks: int, half: bool) -> Counter[str]:
    """Return what a trained model has beside its activations: weights, buffers of collectives, AdamW's two moments."""
    trained, found = size.trained, Counter[str]()
    if ranks == 1 or layout.kind == "ddp":
        found["weights"] = size.bytes
        found["optimiser"] = _MOMENTS * trained
        found["communication"] = 4 * trained if ranks > 1 else 0
        return found
    found["communication"] = moving(size, layout, ranks, half)
    out = 0 if layout.offload else 1
    found["weights"] = out * size.bytes // ranks
    found["gradients"] = out * 4 * trained // ranks
    found["optimiser"] = out * _MOMENTS * trained // ranks
    found["communication"] += 2 * 2 * size.block_trained
    return found


def held(taken: Taken, layout: Layout, ranks: int) -> Counter[str]:
    """Return what a step holds at its worst moment, by what people call it."""
    found: Counter[str] = Counter()
    shared = ranks > 1 and layout.kind != "ddp"
    for kind, size in taken.held.items():
        if kind == "gradients":
            found["gradients"] += 0 if shared else size
        else:
            found[_name(kind)] += size
    return found


def _name(kind: str) -> str:
    if kind == "copies":
        return "weights"
    if kind.startswith("images"):
        return "pictures"
    return "logits" if kind.startswith("head") else "activations"


def together(parts: Mapping[str, float]) -> float:
    """Return the bytes that a GPU needs for these, with what is reserved."""
    return sum(parts.values()) * (1 + FRAGMENTS) + RESERVE
