"""Molmo2: an input that indexes the patches of all pictures of a call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cwdpo.scoring.batch import EncodedGroup
from cwdpo.scoring.family import Family

__all__ = ["Molmo2"]


class Molmo2(Family):
    """Molmo2."""

    name = "molmo2"
    model_types = frozenset({"molmo2"})

    def join(self, name: str, groups: Sequence[EncodedGroup]) -> Tensor:
        """Count the patches of the pictures before, as the processor does for the pictures of one prompt."""
        if name != "image_token_pooling":
            return super().join(name, groups)
        parts, before = list[Tensor](), 0
        for group in groups:
            pooling, pixels = group.vision[name], group.vision["pixel_values"]
            parts.append(torch.where(pooling >= 0, pooling + before, pooling))
            before += pixels.shape[0] * pixels.shape[1]
        return torch.cat(parts)
