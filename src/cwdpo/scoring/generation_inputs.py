"""Encoded prompts without their responses, as a model takes them to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cwdpo.scoring.batch import Batch, EncodedGroup
from cwdpo.scoring.full_sequence import base_model, check_token_types, token_type_rows

__all__ = ["prompt_inputs"]


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
