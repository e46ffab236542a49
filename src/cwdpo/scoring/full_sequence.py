"""The slow, general scorer: every response a full sequence of its own. The oracle of every faster way."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cwdpo.errors import ModelError
from cwdpo.models.parts import base_model
from cwdpo.scoring.batch import Batch, EncodedGroup, ResponseLogits
from cwdpo.scoring.frozen_vision import FrozenVision

__all__ = [
    "SeparateScorer",
    "check_token_types",
    "computes_own_positions",
    "prompt_inputs",
    "token_type_rows",
    "vision_inputs",
]

_RESPONSE_TYPES = {("paligemma", "token_type_ids"): 1}
"""Type of a response's tokens where it is not 0: PaliGemma reads type 0 as the prompt, seen in both directions."""


def computes_own_positions(inner: Any) -> bool:
    """Whether the family derives (multi-axis) positions itself from the mask and the token types."""
    return hasattr(getattr(inner, "model", inner), "get_rope_index")


def check_token_types(inner: Any, batch: Batch) -> None:
    """Refuse images without token types where positions depend on them: the family would take 1-D positions.

    Raises:
        ModelError: The processor gave no `mm_token_type_ids`.
    """
    if not computes_own_positions(inner) or "mm_token_type_ids" not in inspect.signature(inner.forward).parameters:
        return
    for group in batch.groups:
        if group.vision and "mm_token_type_ids" not in group.token_types:
            raise ModelError(
                f"{group.origin}: the processor gave no mm_token_type_ids, without which {type(inner).__name__} puts "
                "image tokens at wrong positions; update transformers or the processor's files"
            )


def token_type_rows(
    inner: Any, batch: Batch, owner: Sequence[int], places: Sequence[tuple[int, int]], mask: Tensor
) -> dict[str, Tensor]:
    """Return `{name: Long[rows, width]}` of further per-token inputs.

    Args:
        inner: The transformers model.
        batch: The groups.
        owner: For each prefix that is to be written the group that has it.
        places: For each of them the row and the column where it starts.
        mask: `[rows, width]`, true at tokens.
    """
    family = getattr(getattr(inner, "config", None), "model_type", "")
    rows: dict[str, Tensor] = {}
    for name in sorted({name for g in batch.groups for name in g.token_types}):
        types = mask.long() * _RESPONSE_TYPES.get((family, name), 0)
        for g, (row, start) in zip(owner, places, strict=True):
            group = batch.groups[g]
            values = group.token_types.get(name, (0,) * len(group.prefix_ids))
            types[row, start : start + len(values)] = torch.tensor(values, dtype=torch.long)
        rows[name] = types
    return rows


def vision_inputs(inner: Any, batch: Batch, repeats: Sequence[int], vision: FrozenVision | None) -> dict[str, Any]:
    """Return the images of a batch on the model's device, those of group g `repeats[g]` times: pixels or features."""
    if vision is not None:
        return vision.inputs(inner, batch, repeats)
    return {name: value.to(inner.device, non_blocking=True) for name, value in batch.vision_inputs(repeats).items()}


def prompt_inputs(model: Any, groups: Sequence[EncodedGroup], pad: int) -> dict[str, Any]:
    """Return the inputs of several prompts, padded on the left.

    Args:
        model: The model that is to answer.
        groups: The prompts; their responses are not read.
        pad: The token that pads.
    """
    inner, batch = base_model(model), Batch(tuple(groups))
    check_token_types(inner, batch)
    width = max(len(g.prefix_ids) for g in groups)
    places = [(row, width - len(g.prefix_ids)) for row, g in enumerate(groups)]
    ids = torch.full((len(groups), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for group, (row, start) in zip(groups, places, strict=True):
        ids[row, start:] = torch.tensor(group.prefix_ids)
        mask[row, start:] = 1
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    inputs |= token_type_rows(inner, batch, range(len(groups)), places, mask)
    return inputs | batch.vision_inputs([1] * len(groups))


class SeparateScorer:
    """Scores each response as prompt + response, images and prompt encoded once per response."""

    def __init__(self, vision: FrozenVision | None = None) -> None:
        self.vision = vision

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Return the logits at the response positions of every response.

        Sequences are padded on the left and left without their last token (which is only a target), so that all
        responses end at the same place and the head is asked for the longest response's positions only.
        """
        inner = base_model(model)
        check_token_types(inner, batch)
        responses, owner = batch.responses, batch.owner
        sequences = [batch.groups[g].prefix_ids + r.ids[:-1] for g, r in zip(owner, responses, strict=True)]
        width = max(len(s) for s in sequences)
        keep = max(len(r.ids) for r in responses)
        ids = torch.zeros((len(sequences), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, width - len(sequence) :] = torch.tensor(sequence)
            mask[row, width - len(sequence) :] = 1
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        places = [(row, width - len(sequence)) for row, sequence in enumerate(sequences)]
        inputs |= token_type_rows(inner, batch, owner, places, mask)
        accepted = inspect.signature(inner.forward).parameters
        if "position_ids" in accepted and not computes_own_positions(inner):
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        inputs = {name: value.to(inner.device, non_blocking=True) for name, value in inputs.items()}
        inputs |= vision_inputs(inner, batch, [len(g.responses) for g in batch.groups], self.vision)
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = keep
        logits: Tensor = model(**inputs, use_cache=False).logits[:, -keep:]
        return _at_responses(logits, [r.ids for r in responses])


def _at_responses(logits: Tensor, responses: list[tuple[int, ...]]) -> ResponseLogits:
    """Pick the valid positions of right-aligned logits `[responses, longest, vocabulary]`."""
    keep = logits.shape[1]
    rows = [row for row, ids in enumerate(responses) for _ in ids]
    columns = [column for ids in responses for column in range(len(ids))]
    places = [keep - len(ids) + column for ids in responses for column in range(len(ids))]
    targets = [token for ids in responses for token in ids]
    row_index, place_index, column_index, target = (
        torch.tensor(values, device=logits.device) for values in (rows, places, columns, targets)
    )
    return ResponseLogits(
        logits=logits[row_index, place_index],
        targets=target,
        rows=row_index,
        columns=column_index,
        shape=(len(responses), keep),
    )
