"""Losses as pure functions: log-probabilities in, one value per pair or response out.

Nothing here reduces over the batch, knows a model or moves a device. Log-probabilities are natural (nats), summed over
the response tokens unless a name says `mean`. With Δ = log π_θ − log π_ref, summed, and σ the logistic function, every
pair loss reports the coefficients that its gradient puts on the two sides:

    −∇loss = winner_coefficient · ∇log π_θ(y_w) − loser_coefficient · ∇log π_θ(y_l)
"""

from cwdpo.losses.cooling import cooling_weight, cw_dpo, dpo_shift
from cwdpo.losses.dpo import cdpo, dpo, dpop, rpo
from cwdpo.losses.images import mdpo, opa_dpo, v_dpo
from cwdpo.losses.likelihood import label_smoothed_nll, nll, nll_ceiling_penalty, nll_floor_penalty
from cwdpo.losses.on_policy import (
    clipped_surrogate,
    generalised_advantages,
    group_advantages,
    kl_to_reference,
)
from cwdpo.losses.pairs import PairLogps, PairLoss, SpanLogps
from cwdpo.losses.per_token import ipo, simpo
from cwdpo.losses.table import PAIR_LOSSES, pair_loss
from cwdpo.losses.weighted import focal_dpo, focalpo, wpo

__all__ = [
    "PAIR_LOSSES",
    "PairLogps",
    "PairLoss",
    "SpanLogps",
    "cdpo",
    "clipped_surrogate",
    "cooling_weight",
    "cw_dpo",
    "dpo",
    "dpo_shift",
    "dpop",
    "focal_dpo",
    "focalpo",
    "generalised_advantages",
    "group_advantages",
    "ipo",
    "kl_to_reference",
    "label_smoothed_nll",
    "mdpo",
    "nll",
    "nll_ceiling_penalty",
    "nll_floor_penalty",
    "opa_dpo",
    "pair_loss",
    "rpo",
    "simpo",
    "v_dpo",
    "wpo",
]
