"""MiniCPM-V: the patches of all pictures stand in one row of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cwdpo.scoring.batch import EncodedGroup
from cwdpo.scoring.family import Family

__all__ = ["MiniCPMV"]


class MiniCPMV(Family):
    """MiniCPM-V 4.6 and 4.7, MiniCPM-OCR."""

    name = "minicpmv"
    model_types = frozenset({"minicpmv4_6", "minicpmv4_7", "minicpm_ocr"})

    def join(self, name: str, groups: Sequence[EncodedGroup]) -> Tensor:
        """The model reads the first row only."""
        if name != "pixel_values":
            return super().join(name, groups)
        return torch.cat([group.vision[name] for group in groups], dim=-1)
