"""AOT."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cwdpo.methods.base import Needs
from cwdpo.methods.dpo import DPO
from cwdpo.methods.pair_logps import PairLogps

__all__ = ["AOT"]


class AOT(DPO):
    """AOT: a whole batch is preferred in distribution, quantile by quantile (Melnyk et al., 2024).

        loss = −(1 − ε) log σ(βδ) − ε log σ(−βδ),  δ = sort(log π_θ,w − log π_θ,l) − sort(log π_ref,w − log π_ref,l)

    Unpaired (`paired: false`) it is δ = sort(Δ_w) − sort(Δ_l). The pairs of an update are sorted, which must
    therefore be one micro-batch. On one pair it is cDPO.
    """

    name: ClassVar[str] = "aot"
    title: ClassVar[str] = "AOT"
    formula: ClassVar[str] = "−log σ(βδ), δ = sort(log π_w/π_l) − sort(log π_ref,w/π_ref,l)"
    paper: ClassVar[str] = "Melnyk et al., 2024"
    arxiv: ClassVar[str] = "2406.05882"
    note: ClassVar[str] = "micro_batch_size = batch_size"

    paired: bool = True
    """Sort the gaps of pairs; false sorts winners and losers apart."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """ε, as in `cdpo`."""

    @property
    def needs(self) -> Needs:
        """All pairs of an update at once."""
        return Needs(whole_batch=True)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the loss of each quantile."""
        if self.paired:
            above, below = pairs.chosen - pairs.rejected, pairs.reference_chosen - pairs.reference_rejected
        else:
            above, below = pairs.chosen_shift, pairs.rejected_shift
        gap = self.beta * (above.sort().values - below.sort().values)
        return -(1 - self.label_smoothing) * F.logsigmoid(gap) - self.label_smoothing * F.logsigmoid(-gap)
