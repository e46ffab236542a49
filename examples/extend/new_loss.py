"""A loss of your own: hinge on DPO's margin, as SLiC has it."""

# --8<-- [start:loss]
import torch

from cwdpo.losses import PairLogps, PairLoss
from cwdpo.objectives.preference import PreferenceObjective


def hinge(pairs: PairLogps, *, beta: float = 0.1, room: float = 1.0) -> PairLoss:
    """Push a pair until its margin is `room`: max(0, room − β(Δ_w − Δ_l))."""
    margin = beta * (pairs.chosen_shift - pairs.rejected_shift)
    pull = beta * (margin.detach() < room).to(margin.dtype)
    return PairLoss(
        loss=torch.relu(room - margin),
        margin=margin.detach(),
        weight=torch.ones_like(pull),
        winner_coefficient=pull,  # −∂loss/∂log π(y_w)
        loser_coefficient=pull,  # ∂loss/∂log π(y_l)
    )


class HingeObjective(PreferenceObjective):
    """What the trainer asks; batches, reference and metrics are the base class's."""

    def pair_loss(self, pairs, batch, scores, reference, tally) -> PairLoss:
        """Return the loss of each pair."""
        return hinge(pairs, beta=self.settings.beta)


# --8<-- [end:loss]


# --8<-- [start:use]
def train(model, processor, data, out: str, **arguments):
    """Train with it: any trainer takes another objective."""
    from cwdpo import CWDPOConfig, CWDPOTrainer

    args = CWDPOConfig(out, objective="dpo", **arguments)
    trainer = CWDPOTrainer(model, None, args, data, processing_class=processor)
    trainer.objective = HingeObjective(args.section())
    trainer.train()
    return trainer


# --8<-- [end:use]
