"""Gemma 3: the tokens of a picture see each other in both directions; sliding windows in most layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cwdpo.scoring.family import Family

__all__ = ["Gemma3"]


class Gemma3(Family):
    """Gemma 3."""

    name = "gemma3"
    model_types = frozenset({"gemma3"})
    shares_prefix = True
    windows = frozenset({"gemma3"})
    causal_prefix = False

    def two_way_blocks(self, prefix: Tensor, types: Mapping[str, Tensor]) -> Tensor:
        """Each picture is a block."""
        image = (types.get("token_type_ids", torch.zeros_like(prefix)) == 1) & prefix
        begins = image & ~image.roll(1, 1)
        return torch.where(image, begins.cumsum(1) - 1, -1)
