"""How a model is run when it is only read: in evaluation mode, and in the precision that a measurement needs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from cwdpo.devices import capture_random, restore_random

__all__ = ["disable_dropout", "in_precision", "inference", "keep_running_statistics", "precision_of"]

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
def in_precision(model: Any, dtype: torch.dtype) -> Generator[None]:
    """Compute in float32, or in float64, one operation at a time: what is less precise is cast where it is used.

    Also what a model casts to float32 by itself is cast to float64 then. Takes the memory of the largest weight, not of
    a second model. Kernels that know only half precision (FlashAttention) raise RuntimeError.
    """
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with _Widened(next(model.parameters()).device.type, dtype):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn


class _Widened(TorchFunctionMode):
    """Casts what functions are given and what they return to a wider type, but for what is written to."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._device, self._dtype = device, dtype
        self._narrow = _HALF if dtype == torch.float32 else (*_HALF, torch.float32)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__get__":
            return self._wide(func(*args, **kwargs))
        if not name.endswith("_"):  # as what writes in place does: `add_`, `__setitem__`
            args, kwargs = tree_map(self._wide, args), tree_map(self._wide, kwargs)
        autocast = torch.is_autocast_enabled(self._device)  # also within the model, where accelerate has wrapped it
        torch.set_autocast_enabled(self._device, False)
        try:
            found = func(*args, **kwargs)
        finally:
            torch.set_autocast_enabled(self._device, autocast)
        return found if name.endswith("_") else tree_map(self._wide, found)

    def _wide(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self._dtype) if value.dtype in self._narrow else value
        return self._dtype if value in self._narrow else value


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


def keep_running_statistics(model: Any) -> None:
    """Have every BatchNorm, in training too, compute with its running statistics and leave them as they are.

    Those of a micro-batch would depend on how a batch is cut, and differ between policy and reference. Scale and shift
    are trained as ever.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.register_forward_pre_hook(_in_evaluation)


def _in_evaluation(module: Module, _: Any) -> None:
    module.training = False
