"""Image features of a frozen vision tower, computed without a graph and handed to the model."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cwdpo.models.generation import inference

__all__ = ["FrozenVision"]

_SHARDED = ("DTensor", "FlatParameter", "FullyShardedDataParallel")
"""Types of parameters and modules that only a forward pass of the wrapped model may gather."""


class FrozenVision:
    """Replaces pixels by features where everything that makes the features is frozen.

    A tower without trainable weights needs no graph, but gradient checkpointing gives it one: it asks for gradients at
    the inputs of every block, and the tower is then recomputed and differentiated in every step.
    """

    def __init__(self) -> None:
        self._parts: WeakKeyDictionary[Any, list[nn.Module]] = WeakKeyDictionary()

    def __call__(self, inner: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return `inputs` with `mm_encoder_outputs` in place of `pixel_values` where that changes nothing else.

        Args:
            inner: The transformers model, without wrappers.
            inputs: What its forward is called with, on its device.
        """
        if "pixel_values" not in inputs or "mm_encoder_outputs" not in inspect.signature(inner.forward).parameters:
            return inputs
        if inner not in self._parts:
            if any(_is_sharded(part) for part in (*inner.modules(), *inner.parameters())):
                return inputs
            self._parts[inner] = _parts_of_vision(inner, inputs)
        parameters = [p for part in self._parts[inner] for p in part.parameters()]
        # Parameters of the two outer models themselves (LLaVA-NeXT's image_newline) may be part of the features.
        parameters += [p for module in _outer(inner) for p in module.parameters(recurse=False)]
        if any(p.requires_grad or _is_sharded(p) for p in parameters):
            return inputs
        with torch.no_grad():
            features = _features(inner, inputs)
        rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
        return rest | {"mm_encoder_outputs": {"image": features}}


def _is_sharded(part: Any) -> bool:
    return type(part).__name__ in _SHARDED or hasattr(part, "ds_id")


def _features(inner: Any, inputs: dict[str, Any]) -> Any:
    accepted = inspect.signature(inner.get_image_features).parameters.keys() - {"input_ids"}
    known: dict[str, Tensor] = {name: value for name, value in inputs.items() if name in accepted}
    return inner.get_image_features(**known, return_dict=True)


def _outer(inner: Any) -> list[nn.Module]:
    return [inner, *([inner.model] if isinstance(getattr(inner, "model", None), nn.Module) else [])]


def _parts_of_vision(inner: Any, inputs: dict[str, Any]) -> list[nn.Module]:
    """Return the modules that run when images are encoded, found by running them once. Adapters inside count too."""
    with inference(inner), _record(inner) as ran:
        _features(inner, inputs)
    return ran


@contextmanager
def _record(inner: nn.Module) -> Generator[list[nn.Module]]:
    ran: dict[nn.Module, None] = {}
    hooks = [m.register_forward_pre_hook(lambda module, _: ran.setdefault(module)) for m in inner.modules()]
    found: list[nn.Module] = []
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        found += list(ran)
