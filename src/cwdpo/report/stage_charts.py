"""Curves of a stage: what the probes read and what training logged, run by run on the same axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cwdpo.probes.figures import BY_KIND, LOGGED, OVERALL, Figure
from cwdpo.report.page_blocks import Absent, Block, Chart, Panel, run_style
from cwdpo.report.run_record import STAGES, RunRecord, StageRecord
from cwdpo.report.svg import Box, Series, line_chart, span
from cwdpo.report.ticks import signed

__all__ = ["Stages", "kind_style", "probe_charts", "run_panels", "training_charts", "with_stage"]

_KIND_STYLES = {"chosen": "k-chosen", "hard": "k-hard", "medium": "k-medium", "easy": "k-easy", "rejected": "k-hard"}
_OTHERS = ("k-other-1", "k-other-2", "k-other-3", "k-other-4")
_SMALL = Box(width=280, height=190, left=44, right=10)
_WIDE = Box(right=104)

Stages = Sequence[tuple[int, RunRecord, StageRecord]]
"""The runs that have a stage: place in the report, run, stage."""

Read = Callable[[StageRecord], list[tuple[float, float]]]


def with_stage(runs: Sequence[RunRecord], stage: str) -> Stages:
    """Return the runs that have a stage."""
    return [(i, run, run.stages[stage]) for i, run in enumerate(runs) if stage in run.stages]


def kind_style(kind: str, kinds: Sequence[str]) -> str:
    """Return the style class of a kind of response."""
    others = [k for k in kinds if k not in _KIND_STYLES]
    return _KIND_STYLES.get(kind) or _OTHERS[others.index(kind) % len(_OTHERS)] + (
        " dashed" if others.index(kind) >= len(_OTHERS) else ""
    )


def probe_charts(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return the charts of a stage's probes."""
    stages = with_stage(runs, stage)
    if not any(s.probes for _, _, s in stages):
        return [Absent(f"No probes were read in {STAGES[stage]}: it has not begun, or `probes.every` is 0.")]
    own = {figure.name: figure for _, _, s in stages for figure in s.own_figures}
    charts = [
        _by_kind(
            stages,
            BY_KIND["delta_start"],
            "Mean log-probability per token of fixed held-out responses, minus its value at the start (dashed). If "
            "`chosen` falls while the easy negatives fall faster, probability is squeezed onto what is likely anyway.",
            reference=0.0,
            notes=[_ends(run, s) for _, run, s in stages],
        ),
        _by_kind(
            stages,
            BY_KIND["logp_mean"],
            "The same responses on the absolute scale: the order of the lines is what the model believes, and the room "
            "between `chosen` and `hard` is what it can tell apart.",
        ),
        _by_figure(
            stages,
            [*OVERALL.values(), *own.values()],
            lambda s, name: s.probe(name),
            "Drift, calibration, sharpness",
            "On the tokens of held-out gold captions. TV and JS say how far the distribution moved; entropy that falls "
            "while ECE rises is overconfidence. The gap is what ranking is about: gold caption against hard negative.",
        ),
        *(_by_kind(stages, figure, "A figure of your own, by kind of response.") for figure in own.values()),
    ]
    return [chart for chart in charts if chart is not None]


def training_charts(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return the charts of what training logged."""
    stages = with_stage(runs, stage)
    if not any(s.metrics for _, _, s in stages):
        text = f"Nothing has been logged in {STAGES[stage]} yet: it has not reached `{stage}.log_steps` updates."
        return [Absent(text)]
    logged = _by_figure(
        stages,
        [figure for name, figure in LOGGED.items() if name != "rewards/margins"],
        lambda s, name: s.metric(name),
        "Training",
        "On the training batches, mean since the last logged row. Losses of different objectives are on different "
        "scales: compare their shape, not their height.",
    )
    names = {"chosen": "rewards/chosen", "margin": "rewards/margins", "rejected": "rewards/rejected"}
    styles = {"chosen": "k-chosen", "margin": "k-other-1", "rejected": "k-hard"}
    rewards = run_panels(
        [(i, run, [_metric(s, name, key, styles[name]) for name, key in names.items()]) for i, run, s in stages],
        "Rewards",
        "β times the change of summed log p against the reference. The margin is what DPO ranks by; watch whether it "
        "grows because `chosen` rises or only because `rejected` falls faster.",
        reference=0.0,
    )
    coefficients = run_panels(
        [(i, run, _coefficients(s)) for i, run, s in stages],
        "Effective pull on winner and loser",
        "The factors before the two gradients of Eq. 8, mean over pairs, the loser's by difficulty. In DPO both are "
        "equal in every pair; cooling lowers the loser's, and may thereby keep the winner's from fading.",
        reference=0.0,
    )
    return [chart for chart in (logged, rewards, coefficients) if chart is not None]


def _coefficients(stage: StageRecord) -> list[Series]:
    prefix = "cooling/loser_coefficient"
    tags = {key.removeprefix(f"{prefix}/") for row in stage.metrics for key in row if key.startswith(f"{prefix}/")}
    order = [t for t in ("hard", "medium", "easy") if t in tags] + sorted(tags - {"hard", "medium", "easy"})
    lines = [_metric(stage, t, f"{prefix}/{t}", kind_style(t, order)) for t in order]
    lines = lines or [_metric(stage, "loser", prefix, "k-hard")]
    return [_metric(stage, "winner", "cooling/winner_coefficient", "k-chosen"), *lines]


def _metric(stage: StageRecord, name: str, key: str, style: str) -> Series:
    return _line(stage, name, style, lambda s: s.metric(key))


def _line(stage: StageRecord, name: str, style: str, read: Read) -> Series:
    """Return a line of a stage, with what its seeds span."""
    return Series(name, read(stage), style, band=stage.band(read))


def _ends(run: RunRecord, stage: StageRecord) -> str:
    """Say where the kinds ended, so that the chart can be read without its colours."""
    lines = {kind: stage.probe("kinds", kind, "delta_start") for kind in stage.kinds}
    ends = [f"{kind} {signed(round(points[-1][1], 2), 2)}" for kind, points in lines.items() if points]
    return f"{run.label}, update {int(stage.probes[-1]['step'])}: {', '.join(ends)}." if ends else ""


def _by_kind(
    stages: Stages, figure: Figure, text: str, *, reference: float | None = None, notes: Sequence[str] = ()
) -> Block | None:
    """Return a chart with a panel per run and a line per kind of response."""
    lines = [
        [
            _line(s, kind, kind_style(kind, s.kinds), lambda one, kind=kind: one.probe("kinds", kind, figure.name))
            for kind in s.kinds
        ]
        for _, _, s in stages
    ]
    drawn = [(i, run, series) for (i, run, _), series in zip(stages, lines, strict=True)]
    return run_panels(drawn, figure.title, text, figure.unit, reference=reference, notes=notes)


def _by_figure(
    stages: Stages,
    figures: Iterable[Figure],
    read: Callable[[StageRecord, str], list[tuple[float, float]]],
    title: str,
    text: str,
) -> Block | None:
    """Return a chart with a small panel per figure, the runs overlaid."""
    panels: list[Panel] = []
    legend: dict[str, str] = {}
    for figure in figures:
        lines = [_line(s, run.label, run_style(i), lambda one, f=figure: read(one, f.name)) for i, run, s in stages]
        series = [line for line in lines if line.points]
        if not series:
            continue
        legend |= {s.name: s.style for s in series}
        drawing = line_chart(
            series[::-1],
            title=f"{figure.title} by run",
            description=text,
            unit=figure.unit,
            y_range=span(series, include=(0.0,) if figure.name in ("tv", "js") else ()),
            labels=False,
            box=_SMALL,
        )
        panels.append(Panel(figure.title, "", drawing))
    return Chart(title, text, panels, legend=list(legend.items()), small=True) if panels else None


def run_panels(
    drawn: Sequence[tuple[int, RunRecord, Sequence[Series]]],
    title: str,
    text: str,
    unit: str = "",
    *,
    reference: float | None = None,
    y_range: tuple[float, float] | None = None,
    notes: Sequence[str] = (),
) -> Block | None:
    """Return a chart with a panel per run and the same axes everywhere; None if there is nothing to draw.

    Args:
        drawn: Place in the report, run, its lines.
        title: Heading.
        text: How to read it.
        unit: Of the y axis.
        reference: Height of a dashed line.
        y_range: Range of y; default the data's.
        notes: Facts read off the data.
    """
    shown = [(i, run, lines) for i, run, series in drawn if (lines := [s for s in series if s.points])]
    if not shown:
        return None
    everything = [s for _, _, series in shown for s in series]
    y_range = y_range or span(everything, include=() if reference is None else (reference,))
    box = _WIDE if max(len(s.name) for s in everything) > 8 else Box()
    x_range = span(everything, 0)
    panels: list[Panel] = []
    for i, run, series in shown:
        how: dict[str, Any] = {"unit": unit, "x_range": x_range, "y_range": y_range, "reference": reference, "box": box}
        drawing = line_chart(series, title=f"{title}: {run.label}", description=text, **how)
        panels.append(Panel(run.label, run_style(i), drawing))
    return Chart(title, text, panels, notes=[n for n in notes if n])
