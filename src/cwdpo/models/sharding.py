"""Whether several processes hold the weights of a model together, each a part of them (FSDP, ZeRO-3)."""

from __future__ import annotations

from typing import Any

__all__ = ["is_sharded", "is_sharded_weight", "wrap_method"]

_WRAPPERS = {"FSDPModule", "FullyShardedDataParallel"}
"""Names of the classes by which FSDP2 and FSDP1 share a module's weights."""


def is_sharded(model: Any) -> bool:
    """Whether processes hold the model's weights together: it is run by all of them in step, or by none.

    A wrapper tells it also at a moment when the weights it gathered are whole.
    """
    if any(kind.__name__ in _WRAPPERS for module in model.modules() for kind in type(module).__mro__):
        return True
    return any(is_sharded_weight(weight) for weight in model.parameters())


def is_sharded_weight(weight: Any) -> bool:
    """Whether this process holds a part of a weight, which a pass of the wrapped model alone puts together."""
    return type(weight).__name__ in ("DTensor", "FlatParameter") or hasattr(weight, "ds_id")


def wrap_method(model: Any, name: str) -> None:
    """Let a method put together what a forward pass of the whole model does, where FSDP2 shares its weights.

    `generate` runs the picture encoder before any forward pass.
    """
    if "FSDPModule" in {kind.__name__ for kind in type(model).__mro__} and name not in vars(model):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(model, name)
