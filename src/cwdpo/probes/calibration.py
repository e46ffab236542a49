"""Expected calibration error and the reliability diagram, accumulated over batches."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

__all__ = ["Calibration", "ReliabilityBin"]

_SLACK = 1e-6  # a top-1 probability taken through exp and log may pass 1 by rounding


class ReliabilityBin(TypedDict):
    """One bar of a reliability diagram."""

    lower: float
    """Left edge, in the bin."""
    upper: float
    """Right edge, in the next bin; 1 is in the last."""
    count: int
    """Predictions in the bin."""
    confidence: float | None
    """Mean confidence, None for an empty bin."""
    accuracy: float | None
    """Share of correct predictions, None for an empty bin."""


class Calibration:
    """Counts of predictions by confidence, in equal bins over [0, 1].

    Bins are closed on the left, as in `torchmetrics`; a confidence of exactly 1 is counted in the last bin, where
    `torchmetrics` opens one more for it. Sums are kept in float64 on the CPU, so the cut into batches does not matter
    beyond float64 rounding.
    """

    def __init__(self, bins: int = 15) -> None:
        """Start with no predictions.

        Args:
            bins: Number of equal bins.

        Raises:
            ValueError: If `bins` is below 1.
        """
        if bins < 1:
            raise ValueError(f"bins = {bins}: must be at least 1")
        self.bins = bins
        self._edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        self._count = torch.zeros(bins, dtype=torch.int64)
        self._correct = torch.zeros(bins, dtype=torch.int64)
        self._confidence = torch.zeros(bins, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Predictions seen so far."""
        return int(self._count.sum())

    def update(self, confidence: Tensor, correct: Tensor) -> None:
        """Add predictions.

        Args:
            confidence: Probability of the top-1 class, between 0 and 1, `[n]`.
            correct: Whether the top-1 class is the gold one, boolean, `[n]`.

        Raises:
            ValueError: If the shapes differ, `correct` is not boolean or a confidence is NaN or outside [0, 1].
        """
        if confidence.shape != correct.shape:
            raise ValueError(
                f"correct: shape {tuple(correct.shape)}, must be that of confidence, {tuple(confidence.shape)}"
            )
        if correct.dtype != torch.bool:
            raise ValueError(f"correct: dtype {correct.dtype}, must be torch.bool")
        value = confidence.detach().flatten().to("cpu", torch.float64)
        outside = value[~((value >= 0) & (value <= 1 + _SLACK))]
        if outside.numel() > 0:
            raise ValueError(f"confidence = {float(outside[0])}: must be between 0 and 1")
        hit = correct.detach().flatten().to("cpu")
        place = (torch.bucketize(value, self._edges, right=True) - 1).clamp(max=self.bins - 1)
        self._count += torch.bincount(place, minlength=self.bins)
        self._correct += torch.bincount(place[hit], minlength=self.bins)
        self._confidence += torch.bincount(place, weights=value, minlength=self.bins)

    def ece(self) -> float:
        """Expected calibration error: Σ_b (n_b / n) · |accuracy_b − confidence_b|.

        Returns:
            Between 0 and 1; NaN if nothing was counted.
        """
        if self.count == 0:
            return math.nan
        return float((self._correct - self._confidence).abs().sum()) / self.count

    def accuracy(self) -> float:
        """Return the share of correct predictions; NaN if nothing was counted."""
        return int(self._correct.sum()) / self.count if self.count else math.nan

    def reliability(self) -> list[ReliabilityBin]:
        """Return the bins of the reliability diagram, from low to high confidence, empty ones included."""
        edges = self._edges.tolist()
        rows: list[ReliabilityBin] = []
        for place in range(self.bins):
            count = int(self._count[place])
            rows.append(
                ReliabilityBin(
                    lower=edges[place],
                    upper=edges[place + 1],
                    count=count,
                    confidence=float(self._confidence[place]) / count if count else None,
                    accuracy=int(self._correct[place]) / count if count else None,
                )
            )
        return rows
