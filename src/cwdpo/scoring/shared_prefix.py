"""The fast scorer: image and prompt encoded once for all responses of a prompt.

A group is one sequence, `[prefix · response 1 · response 2 · …]`, under a mask in which every token sees the prefix and
the earlier tokens of its own response. Every response's positions continue where the prefix ends. A response's first
token is predicted at the prefix's last position, which all responses share. Groups are padded rows or one packed row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cwdpo.models.parts import base_model
from cwdpo.scoring.attention_masks import attention_mask
from cwdpo.scoring.batch import Batch, ResponseLogits
from cwdpo.scoring.family import family_of, require_scorable
from cwdpo.scoring.frozen_vision import FrozenVision, vision_inputs
from cwdpo.scoring.sequence_layout import Layout, positions

__all__ = ["SharedPrefixScorer"]


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
        require_scorable(inner, batch)
        layout = Layout.packed(batch) if self.packed else Layout.padded(batch)
        types = family_of(inner).token_inputs(batch, range(len(batch.groups)), layout.places, layout.tokens)
        inputs: dict[str, Any] = {"input_ids": layout.ids, "position_ids": positions(inner, batch, layout), **types}
        inputs = {name: value.to(inner.device, non_blocking=True) for name, value in inputs.items()}
        inputs |= vision_inputs(inner, batch, [1] * len(batch.groups), self.vision)
        inputs["attention_mask"] = attention_mask(inner, layout, types)
        keep = layout.predicting()
        inputs["logits_to_keep"] = _head_positions(keep, inner.device)
        logits: Tensor = model(**inputs, use_cache=False).logits
        if logits.ndim == 3:  # of one row, or of the last columns
            logits = logits[0] if len(keep) == 1 else logits[keep[:, -logits.shape[1] :].to(logits.device)]
        return _by_response(logits, batch, layout.tokens)


def _head_positions(keep: Tensor, device: torch.device) -> Tensor | int:
    """Return what the head is asked for: exactly the positions needed, or the last columns in older transformers."""
    import transformers.modeling_utils

    if hasattr(transformers.modeling_utils, "slice_logits_to_keep"):
        return keep.to(device)
    if len(keep) == 1:
        return keep[0].nonzero()[:, 0].to(device)
    return keep.shape[1] - int(keep.any(0).nonzero()[0])


def _by_response(logits: Tensor, batch: Batch, tokens: Tensor) -> ResponseLogits:
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
    return ResponseLogits.of(logits[torch.tensor(places, device=logits.device)], batch.responses, tokens)
