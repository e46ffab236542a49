"""Curves of a stage: what the probes saw, run by run on the same axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cwdpo.report.page_blocks import Absent, Block, Figure, Panel, run_style
from cwdpo.report.run_record import RunRecord, StageRecord, number
from cwdpo.report.svg import Box, Series, line_chart, span
from cwdpo.report.ticks import signed

__all__ = ["Stages", "kind_style", "line_panels", "probe_figures", "scalar_panels", "stage_name", "with_stage"]

_KIND_STYLES = {"chosen": "k-chosen", "hard": "k-hard", "medium": "k-medium", "easy": "k-easy", "rejected": "k-hard"}
_OTHERS = ("k-other-1", "k-other-2", "k-other-3", "k-other-4")
_SMALL = Box(width=280, height=190, left=44, right=10)
_WIDE = Box(right=104)

Stages = Sequence[tuple[int, RunRecord, StageRecord]]
"""The runs that have a stage: place in the report, run, stage."""


def kind_style(kind: str, kinds: Sequence[str]) -> str:
    """Return the style class of a kind of response."""
    others = [k for k in kinds if k not in _KIND_STYLES]
    return _KIND_STYLES.get(kind) or _OTHERS[others.index(kind) % len(_OTHERS)] + (
        " dashed" if others.index(kind) >= len(_OTHERS) else ""
    )


# -- probes ------------------------------------------------------------------------------------------------------------


def probe_figures(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return the figures of a stage's probes."""
    stages = with_stage(runs, stage)
    if not any(s.probes for _, _, s in stages):
        return [Absent(f"No probes were read in {stage_name(stage)}: it has not begun, or `probes.every` is 0.")]
    figures = [
        _by_kind(
            stages,
            "delta_start",
            "Change of log p since the start",
            "Mean log-probability per token of fixed held-out responses, minus its value at the start (dashed). If "
            "`chosen` falls while the easy negatives fall faster, probability is squeezed onto what is likely anyway.",
            "nats per token",
            reference=0.0,
            notes=[_ends(run, s) for _, run, s in stages],
        ),
        _by_kind(
            stages,
            "logp_mean",
            "Log p of held-out responses",
            "The same responses on the absolute scale: the order of the lines is what the model believes, and the room "
            "between `chosen` and `hard` is what it can tell apart.",
            "nats per token",
        ),
        scalar_panels(
            stages,
            {
                "tv": ("TV from the start", ""),
                "js": ("JS from the start", "bits"),
                "ece": ("Calibration error", ""),
                "entropy": ("Entropy", "nats per token"),
                "top1": ("Top-1 probability", ""),
                "gap": ("Gap chosen − hard", "nats per token"),
                "accuracy": ("Gold token is the likeliest", "share"),
                "ranking": ("Chosen above rejected", "share of pairs"),
                "correct_top5": ("Captions wholly right", "share of 5 beams"),
                "cider_top5": ("CIDEr, mean of 5 beams", ""),
                "answer_words": ("Length of its own answers", "words"),
            },
            _probed,
            "Drift, calibration, sharpness",
            "On the tokens of held-out gold captions. TV and JS say how far the distribution moved; entropy that falls "
            "while ECE rises is overconfidence. The gap is what ranking is about: gold caption against hard negative.",
        ),
    ]
    return [f for f in figures if f is not None]


def _probed(stage: StageRecord, name: str) -> list[tuple[float, float]]:
    if name != "gap":
        return stage.probe(name)
    hard = dict(stage.probe("kinds", "hard", "logp_mean"))
    return [(x, y - hard[x]) for x, y in stage.probe("kinds", "chosen", "logp_mean") if x in hard]


def _by_kind(
    stages: Stages,
    name: str,
    title: str,
    text: str,
    unit: str,
    *,
    reference: float | None = None,
    notes: Sequence[str] = (),
) -> Block | None:
    """A panel per run, a line per kind of response, the same axes everywhere."""
    drawn: list[tuple[int, RunRecord, list[Series]]] = []
    for i, run, stage in stages:
        lines = [
            _line(stage, kind, kind_style(kind, stage.kinds), lambda s, kind=kind: s.probe("kinds", kind, name))
            for kind in stage.kinds
        ]
        drawn.append((i, run, lines))
    return line_panels(drawn, title, text, unit, reference=reference, notes=notes)


def _line(
    stage: StageRecord, name: str, style: str, read: Callable[[StageRecord], list[tuple[float, float]]]
) -> Series:
    """Return a line of a stage, with what its seeds span."""
    return Series(name, read(stage), style, band=stage.band(read))


def line_panels(
    drawn: Sequence[tuple[int, RunRecord, Sequence[Series]]],
    title: str,
    text: str,
    unit: str,
    *,
    reference: float | None = None,
    y_range: tuple[float, float] | None = None,
    notes: Sequence[str] = (),
) -> Block | None:
    """Return a figure with a panel per run and the same axes everywhere; None if there is nothing to draw.

    Args:
        drawn: Place in the report, run, its lines.
        title: Heading.
        text: How to read it.
        unit: Of the y axis.
        reference: Height of a dashed line.
        y_range: Range of y; default the data's.
        notes: Facts read off the data.
    """
    shown = [(i, run, [s for s in series if s.points]) for i, run, series in drawn]
    shown = [item for item in shown if item[2]]
    if not shown:
        return None
    everything = [s for _, _, series in shown for s in series]
    x_range = span(everything, 0)
    y_range = y_range or span(everything, include=() if reference is None else (reference,))
    box = _WIDE if max(len(s.name) for s in everything) > 8 else Box()
    panels: list[Panel] = []
    for i, run, series in shown:
        drawing = line_chart(
            series,
            title=f"{title}: {run.label}",
            description=text,
            unit=unit,
            x_range=x_range,
            y_range=y_range,
            reference=reference,
            box=box,
        )
        panels.append(Panel(run.label, run_style(i), drawing))
    return Figure(title, text, panels, notes=[n for n in notes if n])


def _ends(run: RunRecord, stage: StageRecord) -> str:
    """Say where the kinds ended, so that the figure can be read without its colours."""
    ends: list[str] = []
    for kind in stage.kinds:
        points = stage.probe("kinds", kind, "delta_start")
        if points:
            ends.append(f"{kind} {signed(round(points[-1][1], 2), 2)}")
    steps = [int(n) for row in stage.probes[-1:] if (n := number(row.get("step"))) is not None]
    return f"{run.label}, update {steps[0]}: {', '.join(ends)}." if ends and steps else ""


def scalar_panels(
    stages: Stages,
    names: dict[str, tuple[str, str]],
    read: Callable[[StageRecord, str], list[tuple[float, float]]],
    title: str,
    text: str,
) -> Block | None:
    """A small panel per quantity, the runs overlaid."""
    panels: list[Panel] = []
    seen: dict[str, str] = {}
    for name, (heading, unit) in names.items():
        series = [_line(stage, run.label, run_style(i), lambda s, name=name: read(s, name)) for i, run, stage in stages]
        series = [s for s in series if s.points]
        if not series:
            continue
        seen |= {s.name: s.style for s in series}
        drawing = line_chart(
            series[::-1],
            title=f"{heading} by run",
            description=text,
            unit=unit,
            y_range=span(series, include=(0.0,) if name in ("tv", "js") else ()),
            labels=False,
            box=_SMALL,
        )
        panels.append(Panel(heading, "", drawing))
    if not panels:
        return None
    return Figure(title, text, panels, legend=list(seen.items()), small=True)


def with_stage(runs: Sequence[RunRecord], stage: str) -> Stages:
    """Return the runs that have a stage."""
    return [(i, run, run.stages[stage]) for i, run in enumerate(runs) if stage in run.stages]


def stage_name(stage: str) -> str:
    """Return a stage in words."""
    return {"stage1": "Stage 1", "stage2": "Stage 2"}[stage]
