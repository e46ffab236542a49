"""Every response a full sequence of its own: in batches, or one at a time. What faster ways are checked against."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cwdpo.models.parts import base_model
from cwdpo.scoring.batch import Batch, EncodedGroup, ResponseLogits
from cwdpo.scoring.family import computes_own_positions, family_of, require_scorable
from cwdpo.scoring.frozen_vision import FrozenVision, vision_inputs

__all__ = ["OneByOneScorer", "SeparateScorer", "prompt_inputs"]


def prompt_inputs(model: Any, groups: Sequence[EncodedGroup], pad: int) -> dict[str, Any]:
    """Return the inputs of several prompts without their responses, padded on the left, as a model generates from them.

    Args:
        model: The model that is to answer.
        groups: The prompts.
        pad: The token that pads.
    """
    inner, batch = base_model(model), Batch(tuple(groups))
    require_scorable(inner, batch)
    inputs = _left_padded(inner, batch, range(len(groups)), [g.prefix_ids for g in groups], pad)
    return inputs | family_of(inner).vision_inputs(batch, [1] * len(groups))


def _left_padded(
    inner: Any, batch: Batch, owner: Sequence[int], sequences: Sequence[Sequence[int]], pad: int = 0
) -> dict[str, Tensor]:
    """Return ids, attention mask and further per-token inputs of sequences that start with their group's prompt."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    places = [(row, width - len(sequence)) for row, sequence in enumerate(sequences)]
    for (row, start), sequence in zip(places, sequences, strict=True):
        ids[row, start:] = torch.tensor(sequence)
        mask[row, start:] = 1
    types = family_of(inner).token_inputs(batch, owner, places, mask)
    return {"input_ids": ids, "attention_mask": mask, **types}


class SeparateScorer:
    """Scores each response as prompt + response, images and prompt encoded once per response.

    Args:
        vision: Hands image features over in place of pixels.
    """

    def __init__(self, vision: FrozenVision | None = None) -> None:
        self.vision = vision

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Return the logits at the response positions of every response.

        Sequences are left without their last token, which is only a target. They end at the same place, so that the
        head is asked for the longest response's positions only.
        """
        inner = base_model(model)
        require_scorable(inner, batch)
        responses, owner = batch.responses, batch.owner
        sequences = [batch.groups[g].prefix_ids + r.ids[:-1] for g, r in zip(owner, responses, strict=True)]
        keep = max(len(r.ids) for r in responses)
        inputs: dict[str, Any] = _left_padded(inner, batch, owner, sequences)
        accepted = inspect.signature(inner.forward).parameters
        if "position_ids" in accepted and not computes_own_positions(inner):
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        inputs = {name: value.to(inner.device, non_blocking=True) for name, value in inputs.items()}
        inputs |= vision_inputs(inner, batch, [len(g.responses) for g in batch.groups], self.vision)
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = keep
        logits: Tensor = model(**inputs, use_cache=False).logits[:, -keep:]
        rows = [row for row, r in enumerate(responses) for _ in r.ids]
        columns = [keep - len(r.ids) + column for r in responses for column in range(len(r.ids))]
        row_index, column_index = (torch.tensor(values, device=logits.device) for values in (rows, columns))
        return ResponseLogits.of(logits[row_index, column_index], responses, inputs["attention_mask"] > 0)


class OneByOneScorer:
    """Scores each response in a forward pass of its own, of just what the processor gave: slow, and always right."""

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Return the logits at the response positions of every response."""
        inner = base_model(model)
        require_scorable(inner, batch)
        accepted = inspect.signature(inner.forward).parameters
        logits: list[Tensor] = []
        for g, response in zip(batch.owner, batch.responses, strict=True):
            alone, keep = Batch((batch.groups[g],)), len(response.ids)
            inputs: dict[str, Any] = _left_padded(inner, alone, [0], [batch.groups[g].prefix_ids + response.ids[:-1]])
            inputs |= family_of(inner).vision_inputs(alone, [1])
            inputs = {name: value.to(inner.device, non_blocking=True) for name, value in inputs.items()}
            if "logits_to_keep" in accepted:
                inputs["logits_to_keep"] = keep
            logits.append(model(**inputs, use_cache=False).logits[0, -keep:])
        return ResponseLogits.of(torch.cat(logits), batch.responses)
