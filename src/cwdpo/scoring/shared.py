"""The fast scorer: image and prompt encoded once for all responses of a prompt.

One sequence a group, `[padding · prefix · response 1 · response 2 · … · padding]`, under a mask in which every token
sees the prefix and the earlier tokens of its own response. Every response's positions continue where the prefix ends.
A response's first token is predicted at the prefix's last position, which all responses share.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cwdpo.errors import ModelError, one_line
from cwdpo.models.attention import SHARED_PREFIX
from cwdpo.models.generation import inference
from cwdpo.processes import processes
from cwdpo.scoring.batch import Batch, ResponseLogits
from cwdpo.scoring.features import FeatureCache
from cwdpo.scoring.reference import Scorer
from cwdpo.scoring.separate import (
    SeparateScorer,
    base_model,
    check_token_types,
    computes_own_positions,
    token_type_rows,
    vision_inputs,
)
from cwdpo.scoring.token_scores import scores_from_logits
from cwdpo.scoring.vision import FrozenVision

__all__ = ["SHARED_FAMILIES", "AutoScorer", "Scorer", "SharedPrefixScorer", "choose_scorer", "why_separate"]

logger = logging.getLogger(__name__)

SHARED_FAMILIES = frozenset(
    {
        "gemma3",
        "idefics3",
        "internvl",
        "llava",
        "llava_next",
        "paligemma",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_vl",
        "qwen3_vl_moe",
        "smolvlm",
    }
)
"""`config.model_type` of the families whose scores and gradients equal the separate scorer's in our tests."""

_MASK_PER_LAYER_TYPE = frozenset({"qwen2_vl", "qwen2_5_vl", "gemma3"})
"""Families that take a mask for each type of layer, so that sliding windows can be told from full attention."""

_BIDIRECTIONAL = frozenset({"paligemma", "gemma3"})
"""Families in whose prefix some tokens see later ones."""

_MASKED = ("sdpa", "eager", SHARED_PREFIX)
"""Attention implementations that take a mask of our own."""

_PREFIX, _PADDING = 0, -1
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest mean difference of a token's log-probability, in nats, that is rounding."""


@dataclass(frozen=True)
class _Layout:
    """Where the tokens of a batch are, one row a group; all prefixes end at the same column.

    Attributes:
        ids: `Long[groups, width]`, 0 at padding.
        segments: `Long[groups, width]`: 0 is the prefix, k the k-th response, -1 padding.
        starts: For each group the column of its first token.
        prefix_end: The column after every prefix.
    """

    ids: Tensor
    segments: Tensor
    starts: list[int]
    prefix_end: int

    @classmethod
    def of(cls, batch: Batch) -> _Layout:
        end = max(len(g.prefix_ids) for g in batch.groups)
        tails = [[token for r in g.responses for token in r.ids[:-1]] for g in batch.groups]
        ids = torch.zeros((len(tails), end + max(map(len, tails))), dtype=torch.long)
        segments = torch.full_like(ids, _PADDING)
        starts = [end - len(g.prefix_ids) for g in batch.groups]
        for row, (group, start, tail) in enumerate(zip(batch.groups, starts, tails, strict=True)):
            ids[row, start : end + len(tail)] = torch.tensor([*group.prefix_ids, *tail])
            segments[row, start:end] = _PREFIX
            numbers = [k for k, r in enumerate(group.responses, 1) for _ in r.ids[1:]]
            segments[row, end : end + len(tail)] = torch.tensor(numbers, dtype=torch.long)
        return cls(ids, segments, starts, end)

    def plain_positions(self) -> Tensor:
        """Return `Long[groups, width]`: the index in prefix + response of every token, 0 at padding."""
        prefix = (self.segments == _PREFIX).long().cumsum(1)
        return (prefix - 1 + self.offsets()) * self.tokens

    @property
    def tokens(self) -> Tensor:
        """`Bool[groups, width]`: true at tokens."""
        return self.segments != _PADDING

    def predicting(self) -> Tensor:
        """Return `Bool[groups, width]`: the positions whose logits are needed."""
        keep = self.segments > _PREFIX
        keep[:, self.prefix_end - 1] = True
        return keep

    def offsets(self) -> Tensor:
        """Return `Long[groups, width]`: how far a response's token is behind the prefix's last token; 0 elsewhere."""
        columns = torch.arange(self.ids.shape[1]).expand_as(self.ids)
        restarts = self.segments != self.segments.roll(1, 1)
        first = torch.where(restarts, columns, 0).cummax(1).values
        return (columns - first + 1) * (self.segments > _PREFIX)

    def seen(self, blocks: Tensor, device: torch.device) -> Tensor:
        """Return `Bool[groups, width, width]`: true where a query (second axis) sees a key (third).

        Args:
            blocks: `Long[groups, width]`: tokens of one block, numbered from 0, see each other in both directions.
            device: Where the mask is made.
        """
        segments, blocks = self.segments.to(device, non_blocking=True), blocks.to(device, non_blocking=True)
        query, key = segments[:, :, None], segments[:, None, :]
        order = torch.arange(segments.shape[1], device=device)
        seen = (order[None, :] <= order[:, None]) & ((key == _PREFIX) | (key == query)) & (key != _PADDING)
        return seen | ((blocks[:, :, None] == blocks[:, None, :]) & (blocks[:, None, :] >= 0))


class SharedPrefixScorer:
    """Scores all responses of a prompt in one sequence. Dropout is drawn once on the shared prefix."""

    def __init__(self, vision: FrozenVision | None = None) -> None:
        self.vision = vision

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Return the logits at the response positions of every response.

        Raises:
            ModelError: The model's attention takes no mask of our own (flash attention, flex attention).
        """
        inner = base_model(model)
        check_token_types(inner, batch)
        layout = _Layout.of(batch)
        keep = layout.predicting()
        types = token_type_rows(inner, batch, range(len(batch.groups)), layout.starts, layout.tokens)
        positions = _positions(inner, batch, layout, types)
        inputs: dict[str, Any] = {"input_ids": layout.ids, "position_ids": positions, **types}
        inputs = {name: value.to(inner.device, non_blocking=True) for name, value in inputs.items()}
        inputs |= vision_inputs(inner, batch, [1] * len(batch.groups), self.vision)
        inputs["attention_mask"] = _attention_mask(inner, layout, positions, types)
        inputs["logits_to_keep"] = _head_positions(keep, inner.device, layout.prefix_end)
        logits: Tensor = model(**inputs, use_cache=False).logits
        if logits.ndim == 3:
            width = keep.shape[1] - layout.prefix_end + 1
            logits = logits[:, -width:][keep[:, -width:].to(logits.device)]
        return _by_response(logits, batch, keep)


def _head_positions(keep: Tensor, device: torch.device, prefix_end: int) -> Tensor | int:
    """Return what the head is asked for: exactly the positions needed or, in older transformers, the last columns."""
    import transformers.modeling_utils

    if hasattr(transformers.modeling_utils, "slice_logits_to_keep"):
        return keep.to(device)
    return keep.shape[1] - prefix_end + 1


def _positions(inner: Any, batch: Batch, layout: _Layout, types: dict[str, Tensor]) -> Tensor:
    """Return `Long[groups, width]`, or `[axes, groups, width]` for multi-axis families, computed without the device."""
    if not computes_own_positions(inner):
        first = 1 if inner.config.model_type == "paligemma" else 0  # its positions count from 1
        return (layout.plain_positions() + first) * layout.tokens
    end = layout.prefix_end
    prefix = layout.tokens[:, :end].long()
    index_of: Any = getattr(inner, "model", inner).get_rope_index
    known: dict[str, Any] = {"input_ids": layout.ids[:, :end], "attention_mask": prefix}
    known["mm_token_type_ids"] = torch.zeros_like(prefix)
    known |= {name: values[:, :end] for name, values in types.items()}
    known |= batch.vision_inputs([1] * len(batch.groups), without=("pixel_values",))
    accepted = inspect.signature(index_of).parameters
    axes: Tensor = index_of(**{name: value for name, value in known.items() if name in accepted})[0]
    last = axes.masked_fill(prefix[None] == 0, 0).amax((0, 2))
    tail = (last[:, None] + layout.offsets()[:, end:]) * layout.tokens[:, end:]
    return torch.cat([axes, tail.expand(len(axes), -1, -1)], -1)


def _attention_mask(inner: Any, layout: _Layout, positions: Tensor, types: dict[str, Tensor]) -> Any:
    """Return the mask in the form that the text model reads: one, or one for each type of layer."""
    text = inner.config.get_text_config()
    seen = layout.seen(_blocks(inner.config.model_type, layout, types), inner.device)
    if _attention(inner) == SHARED_PREFIX and _prefix_is_causal(inner, layout):
        return seen[:, None, layout.prefix_end :]
    full = _mask_tensor(inner, seen)
    if "sliding_attention" not in _layer_types(text):
        return full
    index = (positions if positions.ndim == 2 else layout.plain_positions()).to(inner.device)
    near = index[:, :, None] - index[:, None, :] < text.sliding_window
    return {"full_attention": full, "sliding_attention": _mask_tensor(inner, seen & near)}


def _prefix_is_causal(inner: Any, layout: _Layout) -> bool:
    """Whether plain causal attention is right for all prefixes: no padding, nothing seen forward, no window."""
    plain = inner.config.model_type not in _BIDIRECTIONAL
    text = inner.config.get_text_config()
    return plain and not any(layout.starts) and "sliding_attention" not in _layer_types(text)


def _blocks(family: str, layout: _Layout, types: dict[str, Tensor]) -> Tensor:
    """Return `Long[groups, width]`: the numbers of blocks whose tokens see each other in both directions, else -1."""
    prefix = layout.segments == _PREFIX
    if family == "paligemma":
        return torch.where(prefix, 0, -1)
    if family == "gemma3":
        image = (types.get("token_type_ids", torch.zeros_like(layout.ids)) == 1) & prefix
        begins = image & ~image.roll(1, 1)
        return torch.where(image, begins.cumsum(1) - 1, -1)
    return torch.full_like(layout.ids, -1)


def _mask_tensor(inner: Any, seen: Tensor) -> Tensor:
    # A row that sees nothing is NaN in some kernels, and NaN times 0 is NaN in its gradient.
    seen = (seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device))[:, None]
    attention = _attention(inner)
    if attention in {"sdpa", SHARED_PREFIX}:
        return seen
    if attention == "eager":  # it adds the mask to the scores: a boolean one would be silently wrong
        return torch.zeros_like(seen, dtype=inner.dtype).masked_fill(~seen, torch.finfo(inner.dtype).min)
    raise ModelError(
        f"attention = {attention}: sharing the prompt needs {', '.join(_MASKED)}; set model.attention: sdpa"
    )


def _layer_types(text: Any) -> set[str]:
    return set(getattr(text, "layer_types", None) or ())


def _attention(inner: Any) -> str:
    return str(inner.config.get_text_config()._attn_implementation)


def _by_response(logits: Tensor, batch: Batch, keep: Tensor) -> ResponseLogits:
    """Name the kept logits `[kept, vocabulary]` (row by row) by response; the prefix's last one serves them all."""
    places: list[int] = []
    kept_before = [0, *itertools.accumulate(keep.sum(1).tolist())]
    for group, shared in zip(batch.groups, kept_before, strict=False):
        place = shared
        for response in group.responses:
            own = len(response.ids) - 1
            places += [shared, *range(place + 1, place + 1 + own)]
            place += own
    responses = batch.responses
    lists = (
        places,
        [token for r in responses for token in r.ids],
        [row for row, r in enumerate(responses) for _ in r.ids],
        [column for r in responses for column in range(len(r.ids))],
    )
    place_index, targets, rows, columns = (torch.tensor(values, device=logits.device) for values in lists)
    shape = (len(responses), max(len(r.ids) for r in responses))
    return ResponseLogits(logits[place_index], targets, rows, columns, shape)


def choose_scorer(
    model: Any, batch: Batch, mode: Literal["auto", "shared", "separate"] = "auto", cache: FeatureCache | None = None
) -> Scorer:
    """Return the scorer for a model, checked on a batch of the user's own data.

    The shared scorer is taken for families that are known to work, after a part of `batch` was scored both ways
    (evaluation mode, no gradients, mode restored) and no difference beyond rounding was found. Otherwise a warning
    says why, and every response is scored as a sequence of its own.

    Args:
        model: The model, in any wrapper.
        batch: A batch of the training data.
        mode: `auto`; `shared` raises where `auto` would fall back; `separate` checks nothing.
        cache: Where the shared scorer keeps the image features of a frozen tower.

    Raises:
        ModelError: `mode` is `shared` and the shared scorer cannot be used.
    """
    if mode == "separate":
        return SeparateScorer()
    vision = FrozenVision(cache)
    reason = _why_not_shared(model, batch, vision)
    if reason is None:
        return SharedPrefixScorer(vision)
    if mode == "shared":
        raise ModelError(f"{reason}; set scorer: auto or separate")
    logger.warning("%s; every response is encoded as a sequence of its own, which is slower", reason)
    return SeparateScorer()


class AutoScorer:
    """Chooses the scorer on the first batch it is given (see `choose_scorer`), then keeps to it.

    Args:
        mode: `auto`, `shared` or `separate`.
        bfloat16: Compute in bfloat16 (float32 weights on a bfloat16 base are cast on the way). Scoring outside of a
            training step then computes as one inside does.
        cache: Where the image features of a frozen tower stay from step to step.
    """

    def __init__(
        self,
        mode: Literal["auto", "shared", "separate"] = "auto",
        *,
        bfloat16: bool = False,
        cache: FeatureCache | None = None,
    ) -> None:
        self.mode: Literal["auto", "shared", "separate"] = mode
        self.bfloat16, self.cache = bfloat16, cache
        self.chosen: Scorer | None = None

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Score a batch."""
        device = base_model(model).device.type
        with torch.autocast(device, torch.bfloat16) if self.bfloat16 else nullcontext():
            if self.chosen is None:
                self.chosen = choose_scorer(model, batch, self.mode, self.cache)
            return self.chosen(model, batch)


def why_separate(model: Any) -> str | None:
    """Return why the shared scorer does not go with a model, as far as its settings tell, or None."""
    inner = base_model(model)
    family, text = inner.config.model_type, inner.config.get_text_config()
    if family not in SHARED_FAMILIES:
        return f"sharing the prompt between responses is not known to work for model type {family!r}"
    if _attention(inner) not in _MASKED:
        return f"sharing the prompt needs attention {' or '.join(_MASKED)}, not {_attention(inner)}"
    if others := sorted(_layer_types(text) - {"full_attention", "sliding_attention"}):
        return f"sharing the prompt does not work with {others[0]} layers"
    if getattr(text, "sliding_window", None) and family not in _MASK_PER_LAYER_TYPE:
        return f"sharing the prompt does not know the sliding window of model type {family!r}"
    return None


def _why_not_shared(model: Any, batch: Batch, vision: FrozenVision) -> str | None:
    """Return why the shared scorer cannot be used, or None."""
    if (reason := why_separate(model)) is not None:
        return reason
    family = base_model(model).config.model_type
    telling = sorted(batch.groups, key=lambda g: (bool(g.vision), len(g.responses)), reverse=True)
    sample = Batch(tuple(replace(g, responses=g.responses[:3]) for g in telling[:2]))
    try:
        with inference(model):
            separate = SeparateScorer()(model, sample)
            shared = SharedPrefixScorer(vision)(model, sample)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        found = f"sharing the prompt failed for model type {family!r} ({one_line(error, 160)})"
    else:
        found = _difference(separate, shared, family)
    others = [reason for reason in processes().gather(found) if reason is not None]
    return found or (others[0] if others else None)


def _difference(separate: ResponseLogits, shared: ResponseLogits, family: str) -> str | None:
    """Return what differs beyond rounding, or None."""
    one, other = scores_from_logits(separate), scores_from_logits(shared)
    mean = float((one.logps - other.logps).abs().sum() / one.mask.sum())
    allowed = _TOLERANCE.get(shared.logits.dtype, _TOLERANCE[torch.float32])
    if shared.logits.is_cuda and torch.get_float32_matmul_precision() != "highest":
        allowed = max(allowed, _TOLERANCE[torch.float16])
    if mean <= allowed:
        return None
    return (
        f"sharing the prompt changes log-probabilities of model type {family!r} by {mean:.2g} nats a token "
        f"on the first batch, more than rounding ({allowed:g})"
    )
