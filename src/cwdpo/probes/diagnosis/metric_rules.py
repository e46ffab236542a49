"""Rules over the logged rows: penalty, cooling, reference, loss and gradient."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from cwdpo.data.schema import CHOSEN
from cwdpo.probes.diagnosis.stage_history import Finding, StageFacts, Stream, mean

__all__ = ["over_cooling", "penalty", "reference_mismatch", "unstable_loss"]

_ROWS = 5
"""Logged rows that a rule wants before it speaks."""


def _thirds(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the first and the last third, at least one value each."""
    n = max(1, len(values) // 3)
    return list(values[:n]), list(values[-n:])


def penalty(stream: Stream, facts: StageFacts) -> Finding | None:
    """The penalty of SFT-C is on in no update, or in all of them."""
    active = stream.metric("sft_c/active")
    if facts.stage != "stage1" or len(active) < _ROWS:
        return None
    share = mean([value for _, value in active])
    nll = [value for _, value in stream.metric("nll/rejected")]
    now = (
        f" The negatives' NLL went from {nll[0]:.2f} to {nll[-1]:.2f}; the limit C is {facts.nll_floor:g}."
        if nll
        else ""
    )
    figures = {"share_active": share, "nll_rejected": nll[-1] if nll else math.nan, "limit": facts.nll_floor}
    unit = "per token" if facts.nll_reduction == "mean" else "per response"
    if share == 0:
        return Finding(
            "penalty_never_active",
            "warning",
            f"The penalty on negatives was on in no logged update: this is plain SFT.{now}",
            f"Move stage1.nll_floor (nats {unit}) past the NLL of the negatives"
            + (", or set stage1.nll_reduction=mean." if facts.nll_reduction == "sum" else "."),
            active[0][0],
            figures,
        )
    if share == 1 and facts.regularizer != "entropy":
        return Finding(
            "penalty_always_active",
            "note",
            f"The penalty on negatives was on in every logged update: it pushes at full strength throughout.{now}",
            f"Move stage1.nll_floor (nats {unit}) towards the NLL of the negatives if it is meant as a limit, or lower "
            "stage1.weight.",
            active[0][0],
            figures,
        )
    return None


def over_cooling(stream: Stream, facts: StageFacts) -> Finding | None:
    """The pull on the loser is a small part of the pull on the winner, and nothing is ranked any better."""
    if facts.objective != "cw_dpo":
        return None
    winner, loser = stream.metric("cooling/winner_coefficient"), stream.metric("cooling/loser_coefficient")
    if len(loser) < _ROWS or len(winner) != len(loser):
        return None
    ratios = [down / up if up else 0.0 for (_, up), (_, down) in zip(winner, loser, strict=True)]
    ratio = mean(_thirds(ratios)[1])
    gap = _gap_change(stream)
    if ratio >= 0.1 or gap >= 0.05:
        return None
    step = next(step for (step, _), r in zip(loser, ratios, strict=True) if r < 0.1)
    return Finding(
        "over_cooling",
        "warning",
        f"Losers are pushed {ratio:.1%} as hard as winners are pulled, and the gap between them on held-out prompts "
        f"has changed by only {gap:+.3f} nats per token: there is no ranking signal left.",
        "Lower stage2.floor, set stage2.w_min (or stage2.renormalise), or take harder negatives.",
        step,
        {"loser_to_winner": ratio, "gap_change": gap},
    )


def _gap_change(stream: Stream) -> float:
    """How much the distance between chosen and rejected has grown on the probes, nats per token; 0 if unknown."""
    if not stream.has_chosen or not stream.negatives:
        return 0.0
    return stream.change(CHOSEN)[-1] - stream.negatives_change()[-1]


def reference_mismatch(stream: Stream, facts: StageFacts) -> Finding | None:
    """Policy and reference disagree before the policy has learned anything."""
    if not facts.reference:
        return None
    chosen, rejected = stream.metric("rewards/chosen"), stream.metric("rewards/rejected")
    if not chosen or not rejected:
        return None
    step = chosen[0][0]
    # In the first update policy and reference are the same model; a later row is a mean over updates that count.
    allowed = 0.5 if step <= 1 else 20.0
    shifts = [chosen[0][1] / facts.beta, rejected[0][1] / facts.beta]
    if max(map(abs, shifts)) <= allowed:
        return None
    where = "in the first update" if step <= 1 else f"over the first {step} updates"
    return Finding(
        "reference_mismatch",
        "serious",
        f"Policy and reference differ {where}: log p of a response is off by {shifts[0]:+.1f} nats (chosen) and "
        f"{shifts[1]:+.1f} (rejected), where it should be 0. The reference is not the model that this stage starts "
        "from, or the two compute differently (dropout, number type, template).",
        "Use the start of the stage as reference (delete the reference folder, or leave ref_model out); set dropout "
        "to 0.",
        step,
        {"chosen_shift": shifts[0], "rejected_shift": shifts[1]},
    )


def unstable_loss(stream: Stream, facts: StageFacts) -> Finding | None:
    """The loss grows, is not finite, or gradients are many times their usual size."""
    loss, norms = stream.metric("loss"), stream.metric("grad_norm")
    bad = next((step for step, value in (*loss, *norms) if not math.isfinite(value)), None)
    remedy = (
        f"Lower {facts.stage}.learning_rate, lengthen {facts.stage}.warmup_ratio, or lower {facts.stage}.max_grad_norm."
    )
    if bad is not None:
        return Finding("divergence", "serious", "Loss or gradient is not a finite number.", remedy, bad)
    if len(loss) < 2 * _ROWS:
        return None
    first, last = (mean(part) for part in _thirds([value for _, value in loss]))
    if last > 1.5 * first + 0.1:
        return Finding(
            "divergence",
            "serious",
            f"The training loss grows: {first:.3f} over the first third of the logged rows, {last:.3f} over the last.",
            remedy,
            next(step for step, value in loss if value > 1.5 * first + 0.1),
            {"loss_first_third": first, "loss_last_third": last},
        )
    usual = statistics.median(value for _, value in norms) if norms else 0.0
    spikes = [(step, value) for step, value in norms[len(norms) // 3 :] if value > 20 * usual > 0]
    if spikes:
        return Finding(
            "divergence",
            "warning",
            f"The gradient norm jumped to {max(v for _, v in spikes):.3g} where {usual:.3g} is usual.",
            remedy,
            spikes[0][0],
            {"largest_norm": max(v for _, v in spikes), "usual_norm": usual},
        )
    return None
