"""PaliGemma: a prompt that is read in both directions, and positions from 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from cwdpo.scoring.family import Family

__all__ = ["PaliGemma"]


class PaliGemma(Family):
    """PaliGemma and PaliGemma 2."""

    name = "paligemma"
    model_types = frozenset({"paligemma"})
    shares_prefix = True
    causal_prefix = False
    first_position = 1
    response_types: ClassVar[Mapping[str, int]] = {"token_type_ids": 1}  # type 0 is the prompt, read in both directions

    def two_way_blocks(self, prefix: Tensor, types: Mapping[str, Tensor]) -> Tensor:
        """The prompt is one block."""
        return torch.where(prefix, 0, -1)
