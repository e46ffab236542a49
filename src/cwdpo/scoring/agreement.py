"""Whether a fast way to score gives what the model's own forward gives, one response at a time, but for rounding.

What rounding costs is measured, not assumed: the model's own forward in the precision of the run beside the same in
float32. A way is right if it is off by little more at the worst token and at the worst answer.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cwdpo.errors import ModelError, UserError, one_line
from cwdpo.models.fsdp import is_sharded
from cwdpo.models.modes import in_precision, inference, precision_of
from cwdpo.models.parts import base_model
from cwdpo.processes import is_lost_peer
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse, ResponseLogits
from cwdpo.scoring.full_sequence import OneByOneScorer
from cwdpo.scoring.logprobs import scores_from_logits

__all__ = ["ERRORS", "Agreement", "is_own", "sample_of", "sizes_of"]

_TIMES = 4.0
"""By how much the largest differences of two right ways may differ: 1.7 at most in 132 runs of tiny models."""

_FLOOR = 1e-3
"""Nats by which a token may always be off."""


ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""What a model raises that does not take its inputs."""


def sample_of(batch: Batch) -> Batch:
    """Return two prompts with two responses each, out of a batch, such that mixing them up shows.

    Prompts with pictures are preferred, of unlike sizes if there are. What a batch lacks is made up: a prompt with
    another picture, a response read backwards.
    """
    groups = sorted(
        (g for g in batch.groups if g.responses), key=lambda g: (bool(g.vision), len(g.responses)), reverse=True
    )
    first, *others = [g for g in groups if bool(g.vision) == bool(groups[0].vision)]
    unlike = [g for g in others if sizes_of(g) != sizes_of(first)]
    second = [*unlike, *others, replace(first, vision=_another_picture(first.vision), image_key="")][0]
    return Batch(tuple(replace(g, responses=_two(g.responses)) for g in (first, second)))


def sizes_of(group: EncodedGroup) -> tuple[Any, ...]:
    """Return what pixel inputs a prompt has, and of which sizes."""
    return tuple((name, tuple(value.shape)) for name, value in sorted(group.vision.items()))


def _another_picture(vision: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: -value if value.is_floating_point() else value for name, value in vision.items()}


def _two(responses: Sequence[EncodedResponse]) -> tuple[EncodedResponse, ...]:
    first = responses[0]
    return (*responses, replace(first, ids=first.ids[::-1]))[:2]


class Agreement:
    """What a model's own forward gives for a sample, and how far another way may be from it.

    Args:
        model: The model, in any wrapper.
        sample: A few prompts with responses.

    Raises:
        ModelError: The model cannot score one of their rows.
    """

    def __init__(self, model: Any, sample: Batch) -> None:
        self._model, self._sample = model, sample
        self._autocast: torch.dtype | None = None
        plain = self._own()
        self._exact, token, answer = _by_response(plain), _FLOOR / _TIMES, 0.0
        device, precision = base_model(model).device.type, precision_of(model, self._autocast)
        if precision != torch.float32 or device != "cpu" or torch.get_float32_matmul_precision() != "highest":
            logits = max(float(p.logits.gather(-1, p.targets[:, None]).abs().max()) for p in plain)
            unit = logits * torch.finfo(precision).eps / 2  # what rounding a logit may cost
            if (exact := self._own_in_float32()) is None:
                token = max(token, _TIMES * unit)
            else:
                self._exact = _by_response(exact)
                lost, answer = _largest(_by_response(plain), self._exact)
                token = max(token, unit, lost)
        if all(row.isnan().any() for row in self._exact):
            where = self._sample.groups[0].origin
            raise ModelError(f"{where}: the model's log-probabilities are NaN; are its weights damaged or too large?")
        longest = max(len(row) for row in self._exact)
        self._token, self._answer = _TIMES * token, _TIMES * max(answer, token * math.sqrt(longest))

    def difference(self, score: Callable[[Any, Batch], ResponseLogits]) -> str | None:
        """Return by how much another way is off where that is more than rounding, in words, or None."""
        with inference(self._model):
            token, answer = _largest(_by_response([score(self._model, self._sample)]), self._exact)
        if token <= self._token and answer <= self._answer:
            return None
        return (
            f"changes log-probabilities by up to {token:.2g} nats a token and {answer:.2g} a response on the first "
            f"batch, where rounding allows {self._token:.2g} and {self._answer:.2g}"
        )

    def _own(self) -> list[ResponseLogits]:
        """Score every prompt by the model's own forward."""
        found: list[ResponseLogits] = []
        inner = base_model(self._model)
        hook = inner.get_input_embeddings().register_forward_pre_hook(self._note_autocast)
        try:
            with inference(self._model):
                found.extend(OneByOneScorer()(self._model, Batch((group,))) for group in self._sample.groups)
        except ERRORS as error:
            if is_own(error):
                raise
            raise ModelError(
                f"{self._sample.groups[len(found)].origin}: {type(inner).__name__} cannot score this row: "
                f"{type(error).__name__}: {one_line(error, 200)}"
            ) from error
        finally:
            hook.remove()
        return found

    def _note_autocast(self, *_: Any) -> None:
        device = base_model(self._model).device.type
        self._autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def _own_in_float32(self) -> list[ResponseLogits] | None:
        """The same in float32, or None where processes share the weights or a kernel knows only half precision."""
        if is_sharded(self._model):
            return None
        try:
            with in_precision(self._model, torch.float32):
                return self._own()
        except ModelError:
            return None


def is_own(error: Exception) -> bool:
    """Whether an error is ours rather than the model's: a user's mistake that we name, or a bug in this package."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = Path(frames[-1]).is_relative_to(Path(__file__).parents[1])
    lost = isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and is_lost_peer(error))
    return ours or lost or isinstance(error, UserError)


def _by_response(parts: Sequence[ResponseLogits]) -> list[Tensor]:
    """Return `Float[tokens]` for every response, in nats."""
    scores = [scores_from_logits(part) for part in parts]
    return [row[mask].cpu() for s in scores for row, mask in zip(s.logps, s.mask, strict=True)]


def _largest(found: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """Return the largest difference of a token and of a response, where the exact values are finite."""
    parts = [torch.where(e.isfinite(), f - e, 0.0).nan_to_num(math.inf) for f, e in zip(found, exact, strict=True)]
    return max(float(p.abs().max()) for p in parts), max(abs(float(p.sum())) for p in parts)
