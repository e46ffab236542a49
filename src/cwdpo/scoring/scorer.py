"""How the responses of a batch are scored: the choice between the shared-prefix and the separate scorer."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch

from cwdpo.errors import ModelError, one_line
from cwdpo.models.modes import inference
from cwdpo.models.parts import base_model
from cwdpo.processes import processes
from cwdpo.recipe import ModelSection
from cwdpo.scoring.attention_masks import MASKED, attention_of, layer_types
from cwdpo.scoring.batch import Batch, ResponseLogits
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.shared_prefix import SharedPrefixScorer

__all__ = ["SHARED_FAMILIES", "AutoScorer", "Scorer", "choose_scorer", "why_separate"]

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


class Scorer(Protocol):
    """Anything that gives the logits at the response positions of a batch."""

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Score `batch` under `model`."""
        ...


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
