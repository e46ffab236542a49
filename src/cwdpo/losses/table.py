"""The losses that need nothing but a pair's log-probabilities, by the name that a recipe gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cwdpo.losses.cooling import cw_dpo, dpo_shift
from cwdpo.losses.dpo import cdpo, dpo, dpop, rpo
from cwdpo.losses.pairs import PairLogps, PairLoss
from cwdpo.losses.per_token import ipo, simpo
from cwdpo.losses.weighted import focal_dpo, focalpo, wpo
from cwdpo.recipe import Stage2Section

__all__ = ["PAIR_LOSSES", "pair_loss"]


def _cw_dpo(pairs: PairLogps, s: Stage2Section) -> PairLoss:
    return cw_dpo(
        pairs,
        beta=s.beta,
        floor=s.floor,
        tau=s.tau,
        w_min=s.w_min,
        detach=s.detach,
        renormalise=s.renormalise,
        bound_pull=s.bound_pull,
    )


PAIR_LOSSES: Mapping[str, Callable[[PairLogps, Stage2Section], PairLoss]] = {
    "cw_dpo": _cw_dpo,
    "dpo": lambda pairs, s: dpo(pairs, beta=s.beta),
    "dpo_shift": lambda pairs, s: dpo_shift(pairs, beta=s.beta, weight=s.shift_weight),
    "rpo": lambda pairs, s: rpo(pairs, beta=s.beta, alpha=s.sft_weight),
    "cdpo": lambda pairs, s: cdpo(pairs, beta=s.beta, label_smoothing=s.label_smoothing),
    "ipo": lambda pairs, s: ipo(pairs, beta=s.beta),
    "simpo": lambda pairs, s: simpo(pairs, beta=s.beta, target_margin=s.target_margin),
    "focal_dpo": lambda pairs, s: focal_dpo(pairs, beta=s.beta, gamma=s.focus),
    "focalpo": lambda pairs, s: focalpo(pairs, beta=s.beta, gamma=s.focus),
    "dpop": lambda pairs, s: dpop(pairs, beta=s.beta, penalty=s.winner_penalty),
    "wpo": lambda pairs, s: wpo(pairs, beta=s.beta),
}
"""Settings to loss; the methods that score a second image are in `cwdpo.objectives`."""


def pair_loss(pairs: PairLogps, settings: Stage2Section) -> PairLoss:
    """Return the loss of each pair that a recipe asks for.

    Raises:
        KeyError: The objective needs more than the pairs' log-probabilities.
    """
    return PAIR_LOSSES[settings.objective](pairs, settings)
