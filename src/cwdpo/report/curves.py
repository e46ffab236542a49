"""Curves of a stage: what the probes saw, and what training logged, run by run on the same axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cwdpo.report.blocks import Absent, Block, Figure, Panel, run_style
from cwdpo.report.rundir import RunRecord, StageRecord, as_list, as_map, number
from cwdpo.report.scale import signed, text_of
from cwdpo.report.svg import Box, HistogramRow, Series, histogram_rows, line_chart, span

__all__ = ["cooling_histograms", "kind_style", "probe_figures", "training_figures"]

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
    stages = _with_stage(runs, stage)
    if not any(s.probes for _, _, s in stages):
        return [Absent(f"No probes were read in {_called(stage)}: it has not begun, or `probes.every` is 0.")]
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
        _scalars(
            stages,
            {
                "tv": ("TV from the start", ""),
                "js": ("JS from the start", "bits"),
                "ece": ("Calibration error", ""),
                "entropy": ("Entropy", "nats per token"),
                "top1": ("Top-1 probability", ""),
                "gap": ("Gap chosen − hard", "nats per token"),
            },
            _probed,
            "Drift, calibration, sharpness",
            "On the tokens of held-out gold captions. TV and JS say how far the distribution moved; entropy that falls "
            "while ECE rises is overconfidence. The gap is what ranking is about: gold caption against hard negative.",
        ),
        _by_kind(
            stages,
            "cooling_weight",
            "Cooling weight by difficulty",
            "What Eq. 6 gives each kind of response: near 1 its push counts in full, near 0 it is switched off. Read "
            "for every run; only CW-DPO uses it.",
            "weight",
            kinds=("hard", "medium", "easy", "rejected"),
            y_range=(0.0, 1.0),
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
    kinds: Sequence[str] | None = None,
    y_range: tuple[float, float] | None = None,
    notes: Sequence[str] = (),
) -> Block | None:
    """A panel per run, a line per kind of response, the same axes everywhere."""
    drawn: list[tuple[int, RunRecord, list[Series]]] = []
    for i, run, stage in stages:
        shown = [k for k in stage.kinds if kinds is None or k in kinds]
        series = [Series(k, stage.probe("kinds", k, name), kind_style(k, stage.kinds)) for k in shown]
        series = [s for s in series if s.points]
        if series:
            drawn.append((i, run, series))
    if not drawn:
        return None
    everything = [s for _, _, series in drawn for s in series]
    x_range = span(everything, 0)
    y_range = y_range or span(everything, include=() if reference is None else (reference,))
    box = _WIDE if max(len(s.name) for s in everything) > 8 else Box()
    panels: list[Panel] = []
    for i, run, series in drawn:
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
            ends.append(f"{kind} {signed(points[-1][1], 2)}")
    steps = [int(n) for row in stage.probes[-1:] if (n := number(row.get("step"))) is not None]
    return f"{run.label}, update {steps[0]}: {', '.join(ends)}." if ends and steps else ""


def _scalars(
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
        series = [Series(run.label, read(stage, name), run_style(i)) for i, run, stage in stages]
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


# -- training ----------------------------------------------------------------------------------------------------------


def training_figures(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return the figures of what training logged."""
    stages = _with_stage(runs, stage)
    if not any(s.metrics for _, _, s in stages):
        return [
            Absent(f"Nothing has been logged in {_called(stage)} yet: it has not reached `{stage}.log_steps` updates.")
        ]
    names = {
        "loss": ("Loss", ""),
        "grad_norm": ("Gradient norm", ""),
        "rewards/accuracies": ("Pairs ranked right", "share"),
        "sft_c/active": ("Penalty active", "share"),
        "nll/rejected": ("NLL of negatives", "nats per token"),
    }
    loss = _scalars(
        stages,
        names,
        lambda s, name: s.metric(name),
        "Training",
        "On the training batches, mean since the last logged row. Losses of different objectives are on different "
        "scales: compare their shape, not their height.",
    )
    rewards = _training_panels(
        stages,
        "Rewards",
        "β times the change of summed log p against the reference. The margin is what DPO ranks by; watch whether it "
        "grows because `chosen` rises or only because `rejected` falls faster.",
        "",
        lambda s: {
            "chosen": ("rewards/chosen", "k-chosen"),
            "margin": ("rewards/margins", "k-other-1"),
            "rejected": ("rewards/rejected", "k-hard"),
        },
        reference=0.0,
    )
    coefficients = _training_panels(
        stages,
        "Effective pull on winner and loser",
        "The factors before the two gradients of Eq. 8, mean over pairs, the loser's by difficulty. In DPO both are "
        "equal in every pair; cooling lowers the loser's, and may thereby keep the winner's from fading.",
        "",
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


def _training_panels(
    stages: Stages,
    title: str,
    text: str,
    unit: str,
    names: Callable[[StageRecord], dict[str, tuple[str, str]]],
    *,
    reference: float | None = None,
) -> Block | None:
    """A panel per run, a line per quantity, the same axes everywhere."""
    drawn: list[tuple[int, RunRecord, list[Series]]] = []
    for i, run, stage in stages:
        series = [Series(name, stage.metric(key), style) for name, (key, style) in names(stage).items()]
        series = [s for s in series if s.points]
        if series:
            drawn.append((i, run, series))
    if not drawn:
        return None
    everything = [s for _, _, series in drawn for s in series]
    x_range, y_range = span(everything, 0), span(everything, include=(0.0,))
    panels: list[Panel] = []
    for i, run, series in drawn:
        drawing = line_chart(
            series,
            title=f"{title}: {run.label}",
            description=text,
            unit=unit,
            x_range=x_range,
            y_range=y_range,
            reference=reference,
        )
        panels.append(Panel(run.label, run_style(i), drawing))
    return Figure(title, text, panels)


# -- the cooling weight at the start -----------------------------------------------------------------------------------


def cooling_histograms(runs: Sequence[RunRecord]) -> Block:
    """Return the histogram of the cooling weight by kind at the start of Stage 2, a panel per run."""
    panels: list[Panel] = []
    for i, run, stage in _with_stage(runs, "stage2"):
        first = as_map(stage.probes[0].get("kinds")) if stage.probes else {}
        rows: list[HistogramRow] = []
        for kind in stage.kinds:
            values = as_map(first.get(kind))
            counts = [int(number(n) or 0) for n in as_list(values.get("cooling_histogram"))]
            if not counts:
                continue
            mean = number(values.get("cooling_weight"))
            marks = {} if mean is None else {f"{kind}: mean {text_of(mean, 2)}": mean}
            rows.append(HistogramRow(kind, counts, kind_style(kind, stage.kinds), marks))
        if rows:
            said = "Share of held-out responses by cooling weight, a row per kind; the tick is the mean."
            drawing = histogram_rows(
                rows, title=f"Cooling weights of {run.label}", description=said, x_name="cooling weight"
            )
            panels.append(Panel(run.label, run_style(i), drawing))
    if not panels:
        return Absent("Stage 2 has not been probed, so there are no cooling weights to show.")
    text = (
        "Where Stage 2 starts: how many held-out responses of each kind have which weight; the tick is the mean. "
        "Mass at the left means negatives that Stage 2 will hardly push at all; mass at the right is plain DPO."
    )
    return Figure("Cooling weights when Stage 2 begins", text, panels)


def _with_stage(runs: Sequence[RunRecord], stage: str) -> Stages:
    return [(i, run, run.stages[stage]) for i, run in enumerate(runs) if stage in run.stages]


def _called(stage: str) -> str:
    return {"stage1": "Stage 1", "stage2": "Stage 2"}[stage]
