"""The fast scorer: image and prompt encoded once for all responses of a prompt.

A group is one sequence, `[prefix · response 1 · response 2 · …]`, under a mask in which every token sees the prefix and
the earlier tokens of its own response. Every response's positions continue where the prefix ends. A response's first
token is predicted at the prefix's last position, which all responses share. Groups are padded rows or one packed row.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from cwdpo.errors import ModelError, one_line
from cwdpo.models.generation import inference
from cwdpo.processes import processes
from cwdpo.recipe import ModelSection
from cwdpo.scoring.attention_masks import MASKED, attention_mask, attention_of, layer_types
from cwdpo.scoring.batch import Batch, ResponseLogits
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import (
    SeparateScorer,
    base_model,
    check_token_types,
    token_type_rows,
    vision_inputs,
)
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.reference import Scorer
from cwdpo.scoring.sequence_layout import Layout, positions

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

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest mean difference of a token's log-probability, in nats, that is rounding."""


class SharedPrefixScorer:
    """Scores all responses of a prompt in one sequence. Dropout is drawn once on the shared prefix.

    Args:
        vision: What hands over image features in place of pixels.
        packed: All groups of a batch in one row without padding, instead of one padded row a group.
    """

    def __init__(self, vision: FrozenVision | None = None, *, packed: bool = False) -> None:
        self.vision = vision
        self.packed = packed

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Return the logits at the response positions of every response.

        Raises:
            ModelError: The model's attention takes no mask of our own (flash attention, flex attention).
        """
        inner = base_model(model)
        check_token_types(inner, batch)
        layout = Layout.packed(batch) if self.packed else Layout.padded(batch)
        types = token_type_rows(inner, batch, range(len(batch.groups)), layout.places, layout.tokens)
        inputs: dict[str, Any] = {"input_ids": layout.ids, "position_ids": positions(inner, batch, layout), **types}
        inputs = {name: value.to(inner.device, non_blocking=True) for name, value in inputs.items()}
        inputs |= vision_inputs(inner, batch, [1] * len(batch.groups), self.vision)
        inputs["attention_mask"] = attention_mask(inner, layout, types)
        keep = layout.predicting()
        inputs["logits_to_keep"] = _head_positions(keep, inner.device)
        logits: Tensor = model(**inputs, use_cache=False).logits
        if logits.ndim == 3:  # of one row, or of the last columns
            logits = logits[0] if len(keep) == 1 else logits[keep[:, -logits.shape[1] :].to(logits.device)]
        return _by_response(logits, batch)


def _head_positions(keep: Tensor, device: torch.device) -> Tensor | int:
    """Return what the head is asked for: exactly the positions needed, or the last columns in older transformers."""
    import transformers.modeling_utils

    if hasattr(transformers.modeling_utils, "slice_logits_to_keep"):
        return keep.to(device)
    if len(keep) == 1:
        return keep[0].nonzero()[:, 0].to(device)
    return keep.shape[1] - int(keep.any(0).nonzero()[0])


def _by_response(logits: Tensor, batch: Batch) -> ResponseLogits:
    """Name the kept logits `[kept, vocabulary]` (group by group) by response; the prefix's last one serves them all."""
    places: list[int] = []
    place = 0
    for group in batch.groups:
        shared = place
        for response in group.responses:
            own = len(response.ids) - 1
            places += [shared, *range(place + 1, place + 1 + own)]
            place += own
        place += 1
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
    model: Any,
    batch: Batch,
    mode: Literal["auto", "shared", "separate"] = "auto",
    cache: FeatureCache | None = None,
    *,
    packed: bool = False,
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
        packed: The shared scorer lays a batch in one row without padding.

    Raises:
        ModelError: `mode` is `shared` and the shared scorer cannot be used.
    """
    if mode == "separate":
        return SeparateScorer()
    shared = SharedPrefixScorer(FrozenVision(cache), packed=packed)
    reason = _why_not_shared(model, batch, shared)
    if reason is None:
        return shared
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
        packed: Lay a batch in one row without padding.
    """

    def __init__(
        self,
        mode: Literal["auto", "shared", "separate"] = "auto",
        *,
        bfloat16: bool = False,
        cache: FeatureCache | None = None,
        packed: bool = False,
    ) -> None:
        self.mode: Literal["auto", "shared", "separate"] = mode
        self.bfloat16, self.cache, self.packed = bfloat16, cache, packed
        self.chosen: Scorer | None = None

    @classmethod
    def of(cls, section: ModelSection, cache: FeatureCache | None = None) -> AutoScorer:
        """Return the scorer that a recipe asks for."""
        half = section.dtype == "bfloat16"
        return cls(section.scorer, bfloat16=half, cache=cache, packed=section.padding_free)

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Score a batch."""
        device = base_model(model).device.type
        with torch.autocast(device, torch.bfloat16) if self.bfloat16 else nullcontext():
            if self.chosen is None:
                self.chosen = choose_scorer(model, batch, self.mode, self.cache, packed=self.packed)
            return self.chosen(model, batch)


def why_separate(model: Any) -> str | None:
    """Return why the shared scorer does not go with a model, as far as its settings tell, or None."""
    inner = base_model(model)
    family, text = inner.config.model_type, inner.config.get_text_config()
    if family not in SHARED_FAMILIES:
        return f"sharing the prompt between responses is not known to work for model type {family!r}"
    if attention_of(inner) not in MASKED:
        return f"sharing the prompt needs attention {' or '.join(MASKED)}, not {attention_of(inner)}"
    if others := sorted(layer_types(text) - {"full_attention", "sliding_attention"}):
        return f"sharing the prompt does not work with {others[0]} layers"
    if getattr(text, "sliding_window", None) and family not in _MASK_PER_LAYER_TYPE:
        return f"sharing the prompt does not know the sliding window of model type {family!r}"
    return None


def _why_not_shared(model: Any, batch: Batch, scorer: SharedPrefixScorer) -> str | None:
    """Return why the shared scorer cannot be used, or None."""
    if (reason := why_separate(model)) is not None:
        return reason
    family = base_model(model).config.model_type
    telling = sorted(batch.groups, key=lambda g: (bool(g.vision), len(g.responses)), reverse=True)
    sample = Batch(tuple(replace(g, responses=g.responses[:3]) for g in telling[:2]))
    try:
        with inference(model):
            separate = SeparateScorer()(model, sample)
            shared = scorer(model, sample)
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
