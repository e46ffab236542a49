"""V-DPO: the policy guided away from what it says without its image."""

from __future__ import annotations

from torch import Tensor

from cwdpo import losses
from cwdpo.data.schema import CHOSEN, REJECTED
from cwdpo.objectives.altered import Twins, altered_rows
from cwdpo.objectives.base import Tally
from cwdpo.objectives.preference import PreferenceObjective
from cwdpo.recipe import Stage2Section
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["VDPOObjective"]


class VDPOObjective(PreferenceObjective):
    """`losses.v_dpo`; a twin of each prompt holds its responses under a grey image of the same size.

    The policy alone looks at the grey image: the reference in the loss is that under the prompt's own.
    """

    twin_reference = False

    def __init__(self, settings: Stage2Section, seed: int = 0) -> None:
        super().__init__(settings)
        self.twin = Twins("blank", (CHOSEN, REJECTED), seed)

    def pair_loss(
        self, pairs: losses.PairLogps, batch: Batch, scores: Scores, reference: Tensor, tally: Tally
    ) -> losses.PairLoss:
        """Return the loss of each pair. See `PreferenceObjective.pair_loss`."""
        s = self.settings
        chosen, rejected = (scores.logp_sum[altered_rows(batch, side)] for side in batch.pairs())
        tally.add("logps/null_chosen", chosen)
        tally.add("logps/null_rejected", rejected)
        return losses.v_dpo(pairs, chosen, rejected, beta=s.beta, guidance=s.guidance, detach_null=s.detach_null)
