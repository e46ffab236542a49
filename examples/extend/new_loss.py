"""A loss of your own: hinge on DPO's margin, as SLiC has it."""

# --8<-- [start:loss]
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cwdpo.methods import Method
from cwdpo.methods.pair_logps import PairLogps


class Hinge(Method):
    """Push a pair until its margin is `room`: max(0, room − β(Δ_w − Δ_l))."""

    name: ClassVar[str] = "hinge"
    title: ClassVar[str] = "Hinge"
    formula: ClassVar[str] = "max(0, room − m)"

    beta: float = Field(default=0.1, gt=0)
    """β: how strongly the policy is held to the reference."""
    room: float = Field(default=1.0, gt=0)
    """Margin from which on a pair is left alone."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return one value a pair."""
        return torch.relu(self.room - self.beta * (pairs.chosen_shift - pairs.rejected_shift))


# --8<-- [end:loss]


# --8<-- [start:use]
def train(model, processor, data, out: str, **arguments):
    """Train with it, in place of the method that the arguments name."""
    from cwdpo import CWDPOConfig, CWDPOTrainer

    args = CWDPOConfig(out, **arguments)
    trainer = CWDPOTrainer(model, None, args, data, processing_class=processor, method=Hinge(room=1.0))
    trainer.train()
    return trainer


# --8<-- [end:use]
