"""What a step takes: bytes at its worst moment and FLOPs, by running it dry.

Deep language models are run with a few layers, and once more with a few more: all layers of a kind are alike, so every
phase of a step grows by the same amount with each, and the worst moment of the whole is the worst of its phases.

Weights and activations are torch's fake tensors, which have shapes and bytes and no content; whole numbers, masks and
positions are real ones, so that code that looks at them (where images stand, which windows a tower has) runs as always.
"""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cwdpo.errors import ModelError, one_line
from cwdpo.models.meta_init import make_room
from cwdpo.models.parts import base_model, part_of
from cwdpo.planning.meta_models import bare_model, layers_of, stack_of
from cwdpo.recipe import ModelSection
from cwdpo.scoring.batch import Batch, EncodedGroup
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import why_separate
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from cwdpo.training.offloading import OffloadedActivations

__all__ = ["Taken", "Work", "lowered", "run_dry", "take"]


@dataclass(frozen=True)
class Work:
    """A step: what is run, on what.

    Attributes:
        section: The recipe's model.
        groups: The prompts of one forward pass.
        training: With a backward pass; otherwise nothing has a gradient, as where probes are read.
        checkpointing: Activations are computed again in the backward pass.
        offloading: What the backward pass needs waits in main memory.
        accumulating: There are gradients of earlier micro-batches.
        gathered: The weights are those of a sharded model, which has them in the type of the computation.
    """

    section: ModelSection
    groups: tuple[EncodedGroup, ...]
    training: bool = True
    checkpointing: bool = False
    offloading: bool = False
    accumulating: bool = False
    gathered: bool = False


@dataclass(frozen=True)
class Taken:
    """What a step takes.

    Attributes:
        held: Bytes at its worst moment, by what they are; weights and the optimizer's state are not among them.
        flops: FLOPs of the language model and head (`text`) and of the tower and what joins it (`vision`).
        host: Bytes in main memory.
    """

    held: Counter[str]
    flops: Counter[str]
    host: int = 0


def take(config: Any, work: Work) -> Taken:
    """Return what a step takes on a device that holds the whole model.

    Args:
        config: The model's configuration.
        work: The step.

    Raises:
        ModelError: The model does something that needs numbers.
    """
    peaks, counts = _phases(config, work)
    worst = max(peaks.values(), key=lambda held: held.total())
    host, parts = counts.pop(_HOST, 0), Counter[str]()
    for phase, n in counts.items():
        parts["vision" if phase.startswith("images") else "text"] += n
    return Taken(Counter({kind: size for kind, size in worst.items() if size > 0}), parts, host)


_Phases = tuple[dict[str, Counter[str]], Counter[str]]
"""The worst moment of each phase of a step, and its FLOPs; under `_HOST` the bytes that it keeps in main memory."""

_HOST = "main memory"


def _phases(config: Any, work: Work) -> _Phases:
    """Run a step as far as it has to be run, and extrapolate to the whole."""
    if not work.training and len(work.groups) > 2 and not work.section.padding_free:
        one, two = (_phases(config, replace(work, groups=work.groups[:n])) for n in (1, 2))
        return _with_more(one, len(work.groups) - 1, two, one)  # the prompts are all alike
    layers, period = layers_of(config)
    few = lowered(layers, period)
    first = run_dry(config, work, few)
    if few == layers:
        return first
    return _with_more(first, (layers - few) // period, run_dry(config, work, few + period), first)


def lowered(layers: int, period: int) -> int:
    """Return how many layers are run: a first, a last and another; Qwen3-VL gives its first three something more."""
    few = 3 + (layers - 3) % period
    return layers if layers <= few + period else few


def _with_more(first: _Phases, times: int, more: _Phases, less: _Phases) -> _Phases:
    """Add to every phase so many times what one step has more than another."""
    peaks, counts = {phase: held.copy() for phase, held in first[0].items()}, first[1].copy()
    sums = [(counts, more[1], less[1])]
    sums += [(peaks.setdefault(name, Counter()), much, less[0].get(name, Counter())) for name, much in more[0].items()]
    for total, much, little in sums:
        for name in much.keys() | little.keys():
            total[name] += times * (much[name] - little[name])
    return peaks, counts


def run_dry(config: Any, work: Work, layers: int) -> _Phases:
    """Run a step with some layers of the language model; return the worst moment of each phase and its FLOPs."""
    section = work.section
    half = section.dtype == "bfloat16"
    loaded = torch.bfloat16 if half and (section.lora is not None or work.gathered) else torch.float32
    model = bare_model(config, section, loaded, layers)
    if work.gathered and half:
        model.to(torch.bfloat16)
    if work.checkpointing:
        base_model(model).activation_checkpointing_enable()
        model.enable_input_require_grads()
    mode = hollow(model.train(work.training))
    separate = section.scorer == "separate" or why_separate(model) is not None
    scorer = SeparateScorer() if separate else SharedPrefixScorer(_Vision(), packed=section.padding_free)
    run = DryRun(model)
    _mark(model, run)
    away = _Away(model) if work.offloading else nullcontext()
    autocast = torch.autocast("cpu", torch.bfloat16) if half and not work.gathered else nullcontext()
    try:
        with torch.set_grad_enabled(work.training), mode, run:
            if work.accumulating:
                run.hold_gradients()
            run.enter("images")
            with autocast:
                with away:
                    logits = scorer(model, Batch(work.groups))
                scores = scores_from_logits(logits)
                del logits
            if work.training:
                loss = scores.logp_sum.sum()
                run.enter("head, backward")
                del scores
                loss.backward()
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:  # what a model's code may raise
        family = base_model(model).config.model_type
        raise ModelError(
            f"model type {family!r} cannot be planned: without numbers its step stops at: {one_line(error, 160)}"
        ) from error
    if isinstance(away, _Away):
        run.flops[_HOST] = away.host
    return run.peaks, run.flops


class _Away(OffloadedActivations):
    """Takes tensors without content out of the books, and makes room for them again where they come back."""

    host = 0

    def travels(self, tensor: Tensor) -> bool:
        return isinstance(tensor, FakeTensor)

    def to_host(self, whole: Tensor) -> Any:
        self.host += 1 << (whole.nbytes - 1).bit_length()  # pinned memory is handed out in powers of two
        return whole.shape, whole.dtype

    def to_device(self, host: Any, device: torch.device) -> Tensor:
        return torch.empty(host[0], dtype=host[1], device=device)


class _Vision(FrozenVision):
    """Decides by the names of weights whether features can replace pixels, for the tower cannot be run to see."""

    def _replaces(self, inner: Any, sample: Callable[[], dict[str, Any]]) -> bool:
        if "mm_encoder_outputs" not in inspect.signature(inner.forward).parameters:
            return False
        return not any(p.requires_grad for name, p in inner.named_parameters() if part_of(name) != "language")


def _mark(model: Any, run: DryRun) -> None:
    """Tell the run when it enters the layers of the language model, forward and backward, and the tower backward."""
    forward = True

    def enter(phase: str) -> None:
        nonlocal forward
        forward = False
        run.enter(phase)

    def with_gradient(phase: str, value: Any) -> None:
        tensor = next((part for part in tree_iter(value) if isinstance(part, Tensor)), None)
        if forward and tensor is not None and tensor.requires_grad:
            tensor.register_hook(lambda _: enter(phase))

    def at_first(_: Any, args: Any, kwargs: Any) -> None:
        if forward:
            run.enter("layers")
        with_gradient("below", (args, kwargs))

    def after_last(_: Any, __: Any, out: Any) -> None:
        with_gradient("top layer, backward", out)
        if forward:
            run.enter("head")

    if tower := stack_of(model, "vision"):
        tower[-1].register_forward_hook(lambda _, __, out: with_gradient("images, backward", out))
    first, *between, last = stack_of(model, "language")
    first.register_forward_pre_hook(at_first, with_kwargs=True)
    if between:
        first.register_forward_hook(lambda _, __, out: with_gradient("bottom layer, backward", out))
        last.register_forward_pre_hook(
            lambda _, args, kwargs: with_gradient("layers, backward", (args, kwargs)), with_kwargs=True
        )
    last.register_forward_hook(after_last)


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
