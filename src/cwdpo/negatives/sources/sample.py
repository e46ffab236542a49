"""Samples of the model itself."""

from __future__ import annotations

from collections.abc import Mapping
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

    def generation(self, copies: int) -> Mapping[str, Any]:
        """Return the arguments of `generate`."""
        return {"temperature": self.temperature, "top_p": self.top_p, "num_return_sequences": copies}

    def request(self, copies: int) -> Mapping[str, Any]:
        """Return the fields of a request."""
        return {"temperature": self.temperature, "top_p": self.top_p}
