"""What a step takes: bytes at its worst moment and FLOPs, by running it dry.

Deep language models are run with a few layers, and once more with a few more: all layers of a kind are alike, so every
phase of a step grows by the same amount with each, and the worst moment of the whole is the worst of its phases.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_iter

from cwdpo.errors import ModelError, one_line
from cwdpo.models.parts import base_model, part_of
from cwdpo.planning.fake_run import DryRun, hollow
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
