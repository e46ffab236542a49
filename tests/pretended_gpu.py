"""A pretended GPU: its tensors are computed on the CPU, and refuse to be mixed with tensors of the CPU.

What a GPU would refuse is refused here too: an operation on tensors of both devices, or the numbers of one without a
copy to the CPU first. `float64: false` refuses double precision besides, as Apple's devices do. Run as a script, this
file is `cwdpo` on such a device:

    python tests/pretended_gpu.py train recipe.yaml --out run
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "pretended_gpu", "waits"]

_TAKES_INDICES_OF_THE_CPU = ("aten::index", "aten::_index_put", "aten::_unsafe_index")
_float64 = True

waits: Counter[str] = Counter()
"""How often the program waited for the device, by operation: each time a GPU's queue runs empty."""


class _Backend(_DummyBackendModule):
    """What `torch.cuda` is for CUDA. Random numbers come from the CPU's generator."""

    def get_device_name(self) -> str:
        return "pretended"

    def get_rng_state(self) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor) -> None:
        assert state.device.type == "cpu" and state.dtype == torch.uint8

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("pretended", _Backend())
DEVICE = torch.device("pretended", 0)


class PretendedTensor(Tensor):
    """A tensor on the pretended GPU; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> PretendedTensor:
        if inner.dtype == torch.float64 and not _float64:
            raise TypeError("Cannot convert a tensor to float64: the pretended GPU has no double precision")
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "layout": inner.layout}
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), dtype=inner.dtype, device=DEVICE, requires_grad=requires_grad, **layout
        )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None: ...

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.inner!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    # What torch does with a GPU's tensor below the level at which operations can be taken over.

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def storage(self) -> Any:
        return self.inner.storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendedTensor) else value


def _pretended(value: Any) -> Any:
    return PretendedTensor(value) if isinstance(value, Tensor) and not isinstance(value, PretendedTensor) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation on the CPU, if all its tensors are where the operation takes place."""
    name: str = func._schema.name
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    there = any(isinstance(t, PretendedTensor) for t in tensors)
    target = kwargs.get("device")
    goes_there = there if target is None else torch.device(target).type == DEVICE.type
    inner = tree_map(_inner, args)
    options = {
        key: torch.device("cpu") if key == "device" and value else _inner(value) for key, value in kwargs.items()
    }
    if there and _waits(name, args, target):
        waits[name] += 1
    if name == "aten::copy_":
        _inner(args[0]).copy_(_inner(args[1]))
        return args[0]
    if name == "aten::_to_copy":
        copied = func(*inner, **options)
        return _pretended(copied) if goes_there else copied
    if name == "aten::_local_scalar_dense":
        return func(*inner)
    if there and not name.startswith(_TAKES_INDICES_OF_THE_CPU):
        for tensor in tensors:
            if not isinstance(tensor, PretendedTensor) and tensor.ndim > 0:
                places = [(str(t.device), tuple(t.shape)) for t in tensors]
                raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found {places}")
    if not there and not goes_there:
        return func(*args, **kwargs)
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_pretended, func(*inner, **options)))


def _waits(name: str, args: Any, target: Any) -> bool:
    """Whether the program needs numbers, or how many there are, before it goes on."""
    if name == "aten::copy_":
        return not isinstance(args[0], PretendedTensor)
    if name == "aten::_to_copy":
        return target is not None and torch.device(target).type == "cpu"
    if name.startswith(_TAKES_INDICES_OF_THE_CPU):
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in tree_iter(args[1]))
    return name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")


class _Operations(TorchDispatchMode):
    """Takes over the operations that see no tensor of the device, but make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """`torch.tensor` of a list of tensors reads their numbers where operations cannot be taken over."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.tensor and isinstance(args[0], list | tuple):
            args = (tree_map_only(PretendedTensor, lambda t: t.item(), args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def pretended_gpu(*, float64: bool = True) -> Generator[None]:
    """Let torch, accelerate and transformers find the device, for the rest of the process. It cannot be taken away."""
    from accelerate.state import PartialState
    from transformers import TrainingArguments

    global _float64
    _float64 = float64
    PartialState.default_device = property(lambda _: DEVICE)
    settle = TrainingArguments.device.fget
    TrainingArguments.device = property(lambda self: DEVICE if settle(self) is not None else None)
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device=…)` is made on the CPU, then moved
    with _Operations(), _Lists():
        yield


if __name__ == "__main__":
    from cwdpo.cli import main

    torch.set_num_threads(1)
    with pretended_gpu(float64=not os.environ.get("PRETENDED_WITHOUT_FLOAT64")):
        sys.argv[0] = "cwdpo"
        main()
