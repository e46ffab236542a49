"""Running a step without its arithmetic: every tensor has its shape and its bytes, and no content.

Weights and activations are torch's fake tensors; whole numbers, masks and positions are real ones, so that code that
looks at them (where images stand, which windows a tower has) runs as it always does. What is allocated and freed is
written down, and how many FLOPs every operation would have taken.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cwdpo.models.meta_init import make_room

__all__ = ["DryRun", "hollow"]

_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.clone.default)
_WRITES_AT_MASK = (_aten._index_put_impl_.default, _aten.index_put_.default)
_FACTORIES_OF_WHOLE_NUMBERS = (_aten.arange.default, _aten.arange.start, _aten.arange.start_step)


def _grouped_shape(a: Any, b: Any, offsets: Any) -> tuple[int, ...]:
    """Return the shape of a product of experts: of rows with a matrix each, or of the columns and rows of each."""
    return (offsets.shape[0], a.shape[0], b.shape[1]) if a.ndim == b.ndim else (a.shape[-2], b.shape[-1])


def _grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs of such a product: every row meets the matrix of one expert."""
    return 2 * a[-2] * a[-1] * b[-1]


_FLOPS: Mapping[Any, Callable[..., int]] = {
    _aten._grouped_mm: flop_counter.shape_wrapper(_grouped),
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_counter.shape_wrapper(
        lambda query, key, value, *_, **__: flop_counter.sdpa_flop_count(query, key, value)
    ),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_counter.shape_wrapper(
        lambda gradient, query, key, value, *_, **__: flop_counter.sdpa_backward_flop_count(gradient, query, key, value)
    ),
}
"""What torch's own table of FLOPs leaves out."""


def hollow(model: Any) -> FakeTensorMode:
    """Put fake tensors in place of a bare model's weights and buffers, and return their mode.

    Args:
        model: The model; tied weights stay tied.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        make_room(model)
    return mode


class DryRun(TorchDispatchMode):
    """Runs what is inside its block without arithmetic and keeps the books. Weights count for nothing.

    The mode that `hollow` returned has to be entered before it.

    Args:
        model: A hollow model.

    Attributes:
        peaks: For each phase the bytes held at its worst moment, by what they are: the phase that they were allocated
            in, `gradients`, or `copies` of weights, in another type or no longer in 4 bits.
        flops: FLOPs of each phase.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.peaks: dict[str, Counter[str]] = {}
        self.flops: Counter[str] = Counter()
        self._phase = "start"
        self._held: Counter[str] = Counter()
        self._now = self._highest = 0
        self._known: dict[int, tuple[str, int]] = {}
        self._weights = {_storage(t) for t in (*model.parameters(), *model.buffers())}
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._is_gradient)

    def enter(self, phase: str) -> None:
        """Begin a phase, or resume it."""
        if phase != self._phase:
            self._phase, self._highest = phase, self.peaks.get(phase, Counter()).total()
            self._look()

    def hold_gradients(self) -> None:
        """Give every trained weight a gradient, as it has from the second micro-batch of an update on."""
        for parameter in self._parameters:
            parameter.grad = torch.empty_like(parameter)
            self._note(parameter.grad, "gradients")

    def _look(self) -> None:
        if self._now >= self._highest:
            self._highest = self._now
            self.peaks[self._phase] = self._held.copy()

    def _note(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = _storage(tensor)
        if key in self._known or key in self._weights:
            return
        size = storage.nbytes()
        self._known[key] = (kind, size)
        self._held[kind] += size
        self._now += size
        self._look()
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        kind, size = self._known.pop(key)
        self._held[kind] -= size
        self._now -= size

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = _storage(parameter.grad)
        kind, size = self._known.get(key, ("", 0))
        if kind not in ("", "gradients"):
            self._known[key] = ("gradients", size)
            self._held[kind] -= size
            self._held["gradients"] += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        out = self._run(func, any(issubclass(t, FakeTensor) for t in types), args, kwargs)
        packet = func._overloadpacket
        count = _FLOPS.get(packet) or flop_counter.flop_registry.get(packet)
        if count is not None:
            self.flops[self._phase] += count(*args, **kwargs, out_val=out)
        copied = func in _COPIES and _storage(args[0]) in self._weights
        for tensor in [out] if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(tensor, Tensor):
                self._note(tensor, "copies" if copied else self._phase)
        return out

    def _run(self, func: Any, fake: bool, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if not fake and not _makes_floats(func, args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            return 1.0  # of numbers that nobody has computed
        if func in _WRITES_AT_MASK:
            return args[0]
        if func is _aten.index.Tensor and (places := _masked(args[1])) is not None:
            return args[0].new_empty((places, *args[0].shape[args[1][0].ndim :]))
        if func is _aten._grouped_mm.default:  # torch's own rule for fake tensors takes bfloat16 alone
            offsets = args[2] if len(args) > 2 else kwargs.get("offs")
            return args[0].new_empty(_grouped_shape(args[0], args[1], offsets))
        if func is _aten.index_put.default:
            return torch.empty_like(args[0])
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from every other that is alive: fake ones have no address."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _makes_floats(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation that sees no fake tensor makes a new one of floating-point numbers, to be fake."""
    if any(isinstance(a, Tensor) for a in tree_iter((args, kwargs))):
        return False
    dtype: torch.dtype | None = kwargs.get("dtype")
    return func not in _FACTORIES_OF_WHOLE_NUMBERS if dtype is None else dtype.is_floating_point


def _masked(indices: Any) -> int | None:
    """Return how many places a single mask picks, or None where the indices are no single real mask."""
    if len(indices) != 1 or indices[0].dtype != torch.bool or isinstance(indices[0], FakeTensor):
        return None
    with unset_fake_temporarily():
        return int(indices[0].sum())
