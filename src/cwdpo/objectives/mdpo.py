"""mDPO: the winner must be likelier under its image than under a crop of it."""

from __future__ import annotations

from torch import Tensor

from cwdpo import losses
from cwdpo.data.schema import CHOSEN
from cwdpo.objectives.altered import Twins, altered_shifts
from cwdpo.objectives.base import Tally
from cwdpo.objectives.preference import PreferenceObjective
from cwdpo.recipe import Stage2Section
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["MDPOObjective"]


class MDPOObjective(PreferenceObjective):
    """`losses.mdpo`; a twin of each prompt holds its winner under a random crop of 1 to 20 % of the image."""

    def __init__(self, settings: Stage2Section, seed: int = 0) -> None:
        super().__init__(settings)
        self.twin = Twins("crop", (CHOSEN,), seed)

    def pair_loss(
        self, pairs: losses.PairLogps, batch: Batch, scores: Scores, reference: Tensor, tally: Tally
    ) -> losses.PairLoss:
        """Return the loss of each pair. See `PreferenceObjective.pair_loss`."""
        altered = altered_shifts(batch, scores, reference, batch.pairs()[0])
        tally.add("rewards/altered", self.settings.beta * altered)
        return losses.mdpo(pairs, altered, beta=self.settings.beta)
