"""Rules over the probe readings: squeezing, displacement, dead and false negatives, calibration, drift."""

from __future__ import annotations

import math

from cwdpo.data.schema import CHOSEN
from cwdpo.probes.diagnosis.stage_history import Finding, Severity, StageFacts, Stream, mean

__all__ = [
    "dead_negatives",
    "diverging_likelihood",
    "false_negatives",
    "length_drift",
    "likelihood_displacement",
    "no_learning",
    "overconfidence",
    "squeezing",
]

FALL = 0.05
"""Nats per token: a smaller change of a mean log-probability is not called one."""
BIG_FALL = 0.2
"""Nats per token: a fall of the chosen responses (to four fifths of their likelihood per token) that is serious."""
SHARPER = 0.01
"""A rise of the mean top-1 probability that counts as sharpening."""
ECE_RISE, BIG_ECE_RISE = 0.03, 0.08
COLD = 0.1
"""A cooling weight below this leaves a negative less than a tenth of its push."""


def _significant(stream: Stream, kind: str, change: float) -> bool:
    """Whether a change from the start is beyond the spread over prompts (two standard errors, where known)."""
    error = stream.probes[-1]["kinds"][kind].get("delta_start_se")
    return error is None or math.isnan(error) or abs(change) > 2 * float(error)


def likelihood_displacement(stream: Stream, facts: StageFacts) -> Finding | None:
    """The chosen responses become less likely than at the start of a preference stage."""
    if not facts.preference or stream.later < 2 or not stream.has_chosen:
        return None
    change = stream.change(CHOSEN)
    if max(change[-2:]) > -FALL or not _significant(stream, CHOSEN, change[-1]):
        return None
    negatives = stream.negatives_change()[-1] if stream.negatives else math.nan
    beside = f" (the rejected ones by {negatives:+.2f})" if negatives == negatives else ""
    severity: Severity = "serious" if change[-1] <= -BIG_FALL else "warning"
    return Finding(
        "likelihood_displacement",
        severity,
        f"The chosen responses have become less likely: {change[-1]:+.2f} nats per token since the start{beside}. "
        "The loss still falls because the rejected ones fall faster.",
        "Lower stage2.learning_rate or raise stage2.beta; "
        + (
            "raise stage2.floor, so that more negatives are cooled."
            if facts.objective == "cw_dpo"
            else "try stage2.objective=cw_dpo, or rpo, which adds the likelihood of the chosen responses."
        ),
        stream.first_step(lambda i: change[i] <= -FALL),
        {"chosen_change": change[-1], "rejected_change": negatives, "lowest_chosen_change": min(change)},
    )


def squeezing(stream: Stream, facts: StageFacts) -> Finding | None:
    """Probability leaves chosen and rejected responses alike and gathers on whatever was likeliest already."""
    if not facts.preference or stream.later < 2 or not stream.has_chosen or not stream.negatives:
        return None
    chosen, negatives = stream.change(CHOSEN), stream.negatives_change()
    kinds = [CHOSEN, *stream.negatives]
    top1, entropy = (stream.mean_change(kinds, name) for name in ("top1", "entropy"))

    def squeezed(i: int) -> bool:
        return chosen[i] <= -FALL / 2 and negatives[i] <= -FALL and top1[i] >= SHARPER and entropy[i] < 0

    last = len(chosen) - 1
    if not (squeezed(last) and squeezed(last - 1)) or not _significant(stream, CHOSEN, chosen[-1]):
        return None
    severity: Severity = "serious" if chosen[-1] <= -BIG_FALL or top1[-1] >= 0.1 else "warning"
    return Finding(
        "squeezing",
        severity,
        f"Chosen ({chosen[-1]:+.2f} nats per token) and rejected responses ({negatives[-1]:+.2f}) both lose likelihood "
        f"while the likeliest tokens gain: mean top-1 probability {top1[-1]:+.3f}, entropy {entropy[-1]:+.2f} nats. "
        "Pushing down what is already unlikely squeezes the mass onto the argmax.",
        "Cool or drop easy negatives: "
        + ("raise stage2.floor" if facts.objective == "cw_dpo" else "stage2.objective=cw_dpo")
        + ", or lower stage2.learning_rate.",
        stream.first_step(squeezed),
        {
            "chosen_change": chosen[-1],
            "rejected_change": negatives[-1],
            "top1_change": top1[-1],
            "entropy_change": entropy[-1],
        },
    )


def dead_negatives(stream: Stream, facts: StageFacts) -> Finding | None:
    """Nearly all negatives have a cooling weight near 0."""
    if facts.objective != "cw_dpo" or not stream.negatives:
        return None

    def cold_share(i: int) -> float:
        bars = [stream.probes[i]["kinds"][kind]["cooling_histogram"] for kind in stream.negatives]
        return sum(b[0] for b in bars) / max(1, sum(sum(b) for b in bars))

    last = len(stream.probes) - 1
    if cold_share(last) < 0.9:
        return None
    weight = mean([stream.kind(kind, "cooling_weight")[-1] for kind in stream.negatives])
    hottest = max(stream.kind(kind, "logp_mean")[-1] for kind in stream.negatives)
    from_start = cold_share(0) >= 0.9
    return Finding(
        "dead_negatives",
        "warning" if from_start else "note",
        f"{cold_share(last):.0%} of the negatives have a cooling weight below {COLD} (mean {weight:.3f})"
        + (", from the start: they never take part." if from_start else ": they have been unlearned.")
        + f" Their log p per token is {hottest:.2f} at most, the floor is {facts.floor:g}.",
        "Lower stage2.floor below that, take harder negatives (negatives.stage2.beam), "
        + ("or set stage2.w_min." if from_start else "or stop here: from now on this is finetuning on the chosen."),
        stream.first_step(lambda i: cold_share(i) >= 0.9),
        {"cold_share": cold_share(last), "mean_weight": weight, "likeliest_negative": hottest},
    )


def false_negatives(stream: Stream, facts: StageFacts) -> Finding | None:
    """Rejected responses are more likely than the chosen ones throughout, or gain while the loss pushes them down."""
    if stream.later < 2 or not stream.has_chosen or facts.objective == "sft":
        return None
    chosen = stream.kind(CHOSEN, "logp_mean")
    for kind in stream.negatives:
        gap = [n - c for n, c in zip(stream.kind(kind, "logp_mean"), chosen, strict=True)]
        rise = stream.change(kind)
        above = min(gap) > FALL
        if not above and not (facts.preference and min(rise[-2:]) > FALL and rise[-1] > stream.change(CHOSEN)[-1]):
            continue
        sentence = (
            f"The {kind} negatives are more likely than the chosen responses at every reading "
            f"({gap[0]:+.2f} nats per token at the start, {gap[-1]:+.2f} now)."
            if above
            else f"The {kind} negatives gain likelihood ({rise[-1]:+.2f} nats per token) although the loss pushes them "
            "down, and gain more than the chosen responses."
        )
        return Finding(
            "false_negatives",
            "warning",
            sentence + " Some of them may be right, or chosen and rejected may be swapped.",
            "Read some pairs (`cwdpo check`); drop negatives that equal or paraphrase a gold response; make sure that "
            "the columns are not swapped.",
            int(stream.probes[0]["step"]) if above else stream.first_step(lambda i, r=rise: r[i] > FALL),
            {"gap_at_start": gap[0], "gap": gap[-1], "change": rise[-1]},
        )
    return None


def overconfidence(stream: Stream, facts: StageFacts) -> Finding | None:
    """Calibration gets worse because the model is surer than it is right."""
    ece = stream.probe("ece")
    if stream.later < 2 or not ece:
        return None
    rise = [value - ece[0] for value in ece]
    surplus = [_surplus(row.get("reliability", [])) for row in stream.probes]
    if min(rise[-2:]) < ECE_RISE or surplus[-1] <= 0:
        return None
    top1 = stream.probe("top1")
    return Finding(
        "overconfidence",
        "serious" if rise[-1] >= BIG_ECE_RISE else "warning",
        f"The calibration error of next tokens rose from {ece[0]:.3f} to {ece[-1]:.3f}: on average the model is "
        f"{surplus[-1]:.3f} surer than it is right"
        + (f" (mean top-1 probability {top1[0]:.2f} → {top1[-1]:.2f})." if top1 else "."),
        f"Stop earlier (probes.early_stop with signal ece), lower {facts.stage}.learning_rate"
        + (
            ", or cool more (stage2.objective=cw_dpo, a higher stage2.floor)."
            if facts.preference
            else ", or fewer epochs."
        ),
        stream.first_step(lambda i: rise[i] >= ECE_RISE),
        {"ece_at_start": ece[0], "ece": ece[-1], "surplus": surplus[-1]},
    )


def _surplus(bins: list[dict[str, float]]) -> float:
    """Return mean confidence minus accuracy over all predictions of a reliability diagram."""
    known = [b for b in bins if b["count"]]
    total = sum(b["count"] for b in known)
    return sum(b["count"] * (b["confidence"] - b["accuracy"]) for b in known) / total if total else 0.0


def no_learning(stream: Stream, facts: StageFacts) -> Finding | None:
    """Nothing has moved on held-out prompts after several readings."""
    if stream.later < 4:
        return None
    moved = {kind: max(map(abs, stream.change(kind))) for kind in stream.kinds}
    tv = max(stream.probe("tv") or [0.0])
    largest = max(moved.values(), default=math.inf)
    if largest >= 0.01 or tv >= 0.01:
        return None
    rate = f" {facts.learning_rate:g}" if facts.learning_rate == facts.learning_rate else ""
    return Finding(
        "no_learning",
        "warning",
        f"After {stream.last_step} updates no kind of held-out response has moved by more than {largest:.4f} nats per "
        f"token (total variation {tv:.4f}).",
        f"Raise {facts.stage}.learning_rate{rate} tenfold; make sure that model.freeze leaves what should learn.",
        int(stream.probes[0]["step"]),
        {"largest_change": largest, "tv": tv},
    )


def diverging_likelihood(stream: Stream, facts: StageFacts) -> Finding | None:
    """The gold responses collapse: a nat per token or more below the start."""
    if not stream.later or not stream.has_chosen:
        return None
    change = stream.change(CHOSEN)
    if change[-1] > -1.0:
        return None
    return Finding(
        "divergence",
        "serious",
        f"The gold responses have lost {-change[-1]:.1f} nats per token since the start; the model is coming apart.",
        f"Lower {facts.stage}.learning_rate tenfold, lengthen {facts.stage}.warmup_ratio, or lower "
        f"{facts.stage}.max_grad_norm.",
        stream.first_step(lambda i: change[i] <= -1.0),
        {"chosen_change": change[-1], "learning_rate": facts.learning_rate},
    )


def length_drift(stream: Stream, facts: StageFacts) -> Finding | None:
    """The model's own answers grow or shrink. Seen only where answers are written at the probes."""
    words = stream.probe("answer_words")
    if stream.later < 2 or not words or not words[0]:
        return None
    ratio = [value / words[0] for value in words]
    if not (min(ratio[-2:]) >= 1.2 or max(ratio[-2:]) <= 1 / 1.2):
        return None
    longer = ratio[-1] > 1
    return Finding(
        "length_drift",
        "serious" if ratio[-1] >= 1.5 or ratio[-1] <= 1 / 1.5 else "warning",
        f"The model's own answers have become {'longer' if longer else 'shorter'}: {words[0]:.1f} words at the start, "
        f"{words[-1]:.1f} now.",
        (
            "Compare the lengths of chosen and rejected responses in the data; match them, "
            if facts.preference
            else "Make sure that the chosen responses are as long as answers should be, "
        )
        + f"or lower {facts.stage}.learning_rate.",
        stream.first_step(lambda i: ratio[i] >= 1.2 or ratio[i] <= 1 / 1.2),
        {"words_at_start": words[0], "words": words[-1]},
    )
