"""OPA-DPO's preference losses; own answers, corrections and SFT on both come before (`negatives.correction`)."""

from __future__ import annotations

from torch import Tensor

from cwdpo import losses
from cwdpo.data.schema import CHOSEN
from cwdpo.objectives.altered import Twins, altered_shifts
from cwdpo.objectives.base import Tally
from cwdpo.objectives.preference import PreferenceObjective
from cwdpo.recipe import Stage2Section
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["OPADPOObjective"]


class OPADPOObjective(PreferenceObjective):
    """`losses.opa_dpo` on every chosen response (gold, revised) against every rejected one (the model's own).

    A twin of each prompt holds its chosen responses under the image with 30 % of it masked.
    """

    def __init__(self, settings: Stage2Section, seed: int = 0) -> None:
        super().__init__(settings)
        self.twin = Twins("mask", (CHOSEN,), seed)

    def pair_loss(
        self, pairs: losses.PairLogps, batch: Batch, scores: Scores, reference: Tensor, tally: Tally
    ) -> losses.PairLoss:
        """Return the loss of each pair. See `PreferenceObjective.pair_loss`."""
        s = self.settings
        altered = altered_shifts(batch, scores, reference, batch.pairs(self.every_chosen)[0])
        tally.add("rewards/altered", s.beta * altered)
        return losses.opa_dpo(pairs, altered, beta=s.beta, image_weight=s.image_weight, anchor_weight=s.anchor_weight)
