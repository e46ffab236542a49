"""Hypotheses of a beam search by the model itself (paper, D.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from cwdpo.negatives.policy_texts import PolicySource

__all__ = ["BeamSource"]


class BeamSource(PolicySource):
    """On-policy: a hypothesis of a width-5 beam search that is not a gold response (paper, D.1)."""

    name: ClassVar[str] = "beam"
    seed_matters: ClassVar[bool] = False
    order: ClassVar[int] = 2

    beam_width: int = Field(default=5, ge=2)
    """Width of `beam`."""

    def copies(self, most: int) -> int:
        """Return the width."""
        return max(self.beam_width, most)

    def generation(self, copies: int) -> Mapping[str, Any]:
        """Return the arguments of `generate`."""
        return {"num_beams": copies, "num_return_sequences": copies}

    def request(self, copies: int) -> Mapping[str, Any]:
        """Return what vLLM is asked for."""
        return {"use_beam_search": True, "temperature": 0.0}
