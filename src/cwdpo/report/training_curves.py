"""Curves of a stage: what training logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cwdpo.report.curves import Stages, kind_style, line_panels, scalar_panels, stage_name, with_stage
from cwdpo.report.page_blocks import Absent, Block
from cwdpo.report.run_record import RunRecord, StageRecord
from cwdpo.report.svg import Series

__all__ = ["training_figures"]


def training_figures(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return the figures of what training logged."""
    stages = with_stage(runs, stage)
    if not any(s.metrics for _, _, s in stages):
        return [
            Absent(
                f"Nothing has been logged in {stage_name(stage)} yet: it has not reached `{stage}.log_steps` updates."
            )
        ]
    names = {
        "loss": ("Loss", ""),
        "grad_norm": ("Gradient norm", ""),
        "rewards/accuracies": ("Pairs ranked right", "share"),
        "sft_c/active": ("Penalty active", "share"),
        "nll/rejected": ("NLL of negatives", "nats per token"),
    }
    loss = scalar_panels(
        stages,
        names,
        lambda s, name: s.metric(name),
        "Training",
        "On the training batches, mean since the last logged row. Losses of different objectives are on different "
        "scales: compare their shape, not their height.",
    )
    rewards = _panels(
        stages,
        "Rewards",
        "β times the change of summed log p against the reference. The margin is what DPO ranks by; watch whether it "
        "grows because `chosen` rises or only because `rejected` falls faster.",
        lambda s: {
            "chosen": ("rewards/chosen", "k-chosen"),
            "margin": ("rewards/margins", "k-other-1"),
            "rejected": ("rewards/rejected", "k-hard"),
        },
    )
    coefficients = _panels(
        stages,
        "Effective pull on winner and loser",
        "The factors before the two gradients of Eq. 8, mean over pairs, the loser's by difficulty. In DPO both are "
        "equal in every pair; cooling lowers the loser's, and may thereby keep the winner's from fading.",
        _coefficient_names,
    )
    return [f for f in (loss, rewards, coefficients) if f is not None]


def _coefficient_names(stage: StageRecord) -> dict[str, tuple[str, str]]:
    prefix = "cooling/loser_coefficient"
    found = {key.removeprefix(f"{prefix}/") for row in stage.metrics for key in row if key.startswith(f"{prefix}/")}
    tags = [t for t in ("hard", "medium", "easy") if t in found] + sorted(found - {"hard", "medium", "easy"})
    names = {"winner": ("cooling/winner_coefficient", "k-chosen")}
    names |= {t: (f"{prefix}/{t}", kind_style(t, tags)) for t in tags}
    return names if tags else names | {"loser": (prefix, "k-hard")}


def _panels(
    stages: Stages,
    title: str,
    text: str,
    names: Callable[[StageRecord], dict[str, tuple[str, str]]],
) -> Block | None:
    """A panel per run, a line per logged quantity."""
    drawn = [
        (i, run, [_metric_line(stage, name, key, style) for name, (key, style) in names(stage).items()])
        for i, run, stage in stages
    ]
    return line_panels(drawn, title, text, "", reference=0.0)


def _metric_line(stage: StageRecord, name: str, key: str, style: str) -> Series:
    """Return a line of what a stage logged, with what its seeds span."""
    return Series(name, stage.metric(key), style, band=stage.band(lambda s: s.metric(key)))
