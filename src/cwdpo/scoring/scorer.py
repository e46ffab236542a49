"""How the responses of a batch are scored: the choice of a scorer, made and checked on each model by itself."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch

from cwdpo.errors import ModelError, one_line
from cwdpo.models.fsdp import is_sharded
from cwdpo.models.parts import base_model
from cwdpo.processes import processes
from cwdpo.recipe import ModelSection
from cwdpo.scoring.agreement import ERRORS, Agreement, is_own, sample_of, sizes_of
from cwdpo.scoring.attention_masks import MASKED, attention_of, layer_types
from cwdpo.scoring.batch import Batch, ResponseLogits
from cwdpo.scoring.family import family_of
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import OneByOneScorer, SeparateScorer
from cwdpo.scoring.shared_prefix import SharedPrefixScorer

__all__ = ["AutoScorer", "Scorer", "why_separate"]

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """Anything that gives the logits at the response positions of a batch."""

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Score `batch` under `model`."""
        ...


@dataclass(frozen=True)
class _Choice:
    """The scorer of a model, and what it was checked on."""

    scorer: Scorer
    checked: frozenset[str]


class AutoScorer:
    """Chooses a scorer for every model it is given, and checks it on the first batch.

    Shared prefix is taken for families that are known to work. Where it, or sequences in batches, differ from the
    model's own forward by more than rounding, the next slower way is taken, with a warning that says why. A choice is
    checked again on the first batch with pictures, and on the first with pictures of unlike sizes.

    Args:
        mode: `auto`; `shared` raises where `auto` would fall back; `separate` does not share prompts.
        bfloat16: Compute in bfloat16 (float32 weights on a bfloat16 base are cast on the way). Scoring outside of a
            training step then computes as one inside does.
        cache: Where the shared scorer keeps the image features of a frozen tower.
        packed: The shared scorer lays a batch in one row without padding.
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
        self.bfloat16, self.packed, self.vision = bfloat16, packed, FrozenVision(cache)
        self._choices: WeakKeyDictionary[Any, _Choice] = WeakKeyDictionary()
        self._said: set[str] = set()

    @classmethod
    def of(cls, section: ModelSection, cache: FeatureCache | None = None) -> AutoScorer:
        """Return the scorer that a recipe asks for."""
        half = section.dtype == "bfloat16"
        return cls(section.scorer, bfloat16=half, cache=cache, packed=section.padding_free)

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Score a batch."""
        device = base_model(model).device.type
        with torch.autocast(device, torch.bfloat16) if self.bfloat16 else nullcontext():
            return self.scorer_for(model, batch)(model, batch)

    def scorer_for(self, model: Any, batch: Batch) -> Scorer:
        """Return the scorer of a model, chosen and checked if it is the first batch of its kind.

        Raises:
            ModelError: `mode` is `shared` and the prompt cannot be shared, or the model cannot score the batch at all.
        """
        inner, kinds = base_model(model), _kinds(batch)
        known = self._choices.get(inner)
        # Processes that share weights run a model together or not at all: once, where all of them begin.
        if known is not None and (kinds <= known.checked or is_sharded(model)):
            return known.scorer
        together = is_sharded(model) or not self._choices
        scorer = self._choose(model, batch, together=together)
        self._choices[inner] = _Choice(scorer, kinds | (known.checked if known is not None else frozenset()))
        return scorer

    def _choose(self, model: Any, batch: Batch, *, together: bool) -> Scorer:
        def agreed(reason: str | None) -> str | None:
            reasons = processes().gather(reason) if together else [reason]
            return next((r for r in (reason, *reasons) if r is not None), None)

        inner = base_model(model)
        family, name = family_of(inner), f"model type {inner.config.model_type!r}"
        agreement = Agreement(model, sample_of(batch))
        if family.one_at_a_time:
            if self.mode == "shared":
                raise ModelError(f"sharing the prompt does not work for {name}; set scorer: auto or separate")
            self._say(f"{name} is scored one response at a time, since a batch would change its scores")
            return OneByOneScorer()
        if self.mode != "separate":
            shared = SharedPrefixScorer(self.vision, packed=self.packed)
            reason = why_separate(model)
            if reason is None and (wrong := agreed(agreement.difference(shared))) is not None:
                reason = f"sharing the prompt {wrong} for {name}"
            if reason is None:
                return shared
            if self.mode == "shared":
                raise ModelError(f"{reason}; set scorer: auto or separate")
            self._say(f"{reason}; every response is encoded as a sequence of its own, which is slower")
        separate = SeparateScorer()
        if (wrong := agreed(_difference(agreement, separate))) is None:
            return separate
        self._say(f"scoring sequences in a batch {wrong} for {name}; they are scored one at a time, the slowest way")
        return OneByOneScorer()

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)


def _kinds(batch: Batch) -> frozenset[str]:
    """Name what a choice has to be checked on."""
    sizes = {sizes_of(g) for g in batch.groups if g.vision}
    return frozenset({name for size in sizes for name, _ in size} | ({"unlike sizes"} if len(sizes) > 1 else set()))


def _difference(agreement: Agreement, separate: SeparateScorer) -> str | None:
    try:
        return agreement.difference(separate)
    except ModelError as error:
        return f"fails ({one_line(error, 160)})"
    except ERRORS as error:
        if is_own(error):
            raise
        return f"fails ({type(error).__name__}: {one_line(error, 160)})"


def why_separate(model: Any) -> str | None:
    """Return why a model's responses cannot share their prompt, as far as its settings tell, or None."""
    inner = base_model(model)
    family, kind, text = family_of(inner), inner.config.model_type, inner.config.get_text_config()
    if not family.shares_prefix:
        return f"sharing the prompt between responses is not known to work for model type {kind!r}"
    if attention_of(inner) not in MASKED:
        return f"sharing the prompt needs attention {' or '.join(MASKED)}, not {attention_of(inner)}"
    if others := sorted(layer_types(text) - {"full_attention", "sliding_attention"}):
        return f"sharing the prompt does not work with {others[0]} layers"
    if getattr(text, "sliding_window", None) and kind not in family.windows:
        return f"sharing the prompt does not know the sliding window of model type {kind!r}"
    return None
