"""Samples of the model itself."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cwdpo.negatives.policy_texts import PolicySource

__all__ = ["SampleSource"]


class SampleSource(PolicySource):
    """On-policy: a sample at `temperature` that is not a gold response."""

    name: ClassVar[str] = "sample"
    order: ClassVar[int] = 3

    temperature: float = Field(default=1.0, gt=0)
    """Temperature of `sample`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Top-p (nucleus) sampling for `sample`."""

    def copies(self, most: int) -> int:
        """Return how many samples leave some to spare for those that are gold responses."""
        return 2 * most + 2

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings."""
        return {"temperature": self.temperature, "top_p": self.top_p}
