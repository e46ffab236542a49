"""Hypotheses of a beam search by the model itself (paper, D.1)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cwdpo.negatives.policy_texts import PolicySource

__all__ = ["BeamSource"]


class BeamSource(PolicySource):
    """On-policy: a hypothesis of a width-5 beam search that is not a gold response (paper, D.1)."""

    name: ClassVar[str] = "beam"
    order: ClassVar[int] = 2

    beam_width: int = Field(default=5, ge=2)
    """Width of `beam`."""

    def copies(self, most: int) -> int:
        """Return the width."""
        return max(self.beam_width, most)
