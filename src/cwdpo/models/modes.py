"""How a model is run when it is only read: in evaluation mode, and in float32 whatever its weights are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from cwdpo.devices import capture_random, restore_random

__all__ = ["disable_dropout", "in_float32", "inference", "precision_of"]

_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def inference(model: Any) -> Generator[None]:
    """Evaluate without gradients; training modes and RNG state are restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    random_state = capture_random()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        restore_random(random_state)


def precision_of(model: Any, autocast: torch.dtype | None) -> torch.dtype:
    """Return the least precise type that a model computes in.

    Args:
        model: The model.
        autocast: The type of autocast within its forward pass, if there is one.
    """
    weights = (*model.parameters(), *model.buffers())
    computed = (vars(module).get("compute_dtype") for module in model.modules())  # of 4-bit layers
    types = {autocast, *(w.dtype for w in weights), *computed}
    return next((half for half in _HALF if half in types), torch.float32)


@contextmanager
def in_float32(model: Any) -> Generator[None]:
    """Compute in float32, one operation at a time: what is in half precision is cast where it is used.

    Takes the memory of the largest weight, not of a second model. Kernels that know only half precision
    (FlashAttention) raise RuntimeError.
    """
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with _Float32(next(model.parameters()).device.type):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn


class _Float32(TorchFunctionMode):
    """Casts to float32 what functions are given and what they return, but for what is written to."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__get__":
            return _float(func(*args, **kwargs))
        if not name.endswith("_"):  # as what writes in place does: `add_`, `__setitem__`
            args, kwargs = tree_map(_float, args), tree_map(_float, kwargs)
        autocast = torch.is_autocast_enabled(self._device)  # also within the model, where accelerate has wrapped it
        torch.set_autocast_enabled(self._device, False)
        try:
            found = func(*args, **kwargs)
        finally:
            torch.set_autocast_enabled(self._device, autocast)
        return found if name.endswith("_") else tree_map(_float, found)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in _HALF


def _float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if _is_half(value) else value
    return torch.float32 if value in _HALF else value


def disable_dropout(model: Any) -> None:
    """Set every rate of dropout, layer drop and router noise in a model to 0; its configuration keeps what it says.

    A policy with dropout and a reference without differ before anything was learnt. The training mode stays: gradient
    checkpointing and 4-bit layers depend on it.
    """
    for module in model.modules():
        own = ("p",) if "Dropout" in type(module).__name__ else ()
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (name in own or "drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
