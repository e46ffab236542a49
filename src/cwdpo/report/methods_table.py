"""The table of methods and the bars: held-out figures before and after the last stage."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwdpo.report.bars import Bar, bar_chart
from cwdpo.report.page_blocks import Absent, Block, Cell, Figure, Panel, Table, run_style
from cwdpo.report.run_record import RunRecord, as_list, as_map, number
from cwdpo.report.svg import Series, line_chart
from cwdpo.report.ticks import text_of

__all__ = ["drift_bars", "methods_table", "reliability"]


@dataclass(frozen=True)
class _Column:
    key: str
    name: str
    title: str
    decimals: int = 3
    scale: float = 1.0


_COLUMNS = (
    _Column("tv", "TV", "Total variation to the start of the stage, over gold tokens"),
    _Column("js", "JS", "Jensen–Shannon divergence to the start of the stage, in bits"),
    _Column("ece", "ECE", "Expected calibration error of the next gold token, 15 bins; lower is better"),
    _Column("entropy", "entropy", "Predictive entropy, nats per gold token"),
    _Column("top1", "top-1", "Probability of the likeliest token, mean over gold tokens"),
    _Column("logp_chosen", "log p gold", "Log-probability of gold captions, nats per token; higher is better"),
    _Column("logp_hard", "hard", "Log-probability of hard negatives, nats per token"),
    _Column("logp_medium", "medium", "Log-probability of medium negatives, nats per token"),
    _Column("logp_easy", "easy", "Log-probability of easy negatives, nats per token"),
    _Column(
        "grounding",
        "picture",
        "How much likelier gold captions are with their own picture than with another, nats per token",
    ),
    _Column("correct", "right, %", "Greedy captions that are wholly right; higher is better", 1, 100),
    _Column("cider", "CIDEr", "CIDEr-D × 100 against all references; higher is better", 1),
)


def methods_table(runs: Sequence[RunRecord], extra: Mapping[str, Any] | None) -> Block:
    """Return the table: a row at the start and a row at the end for each run, then the methods of `extra`."""
    methods = as_map(dict(extra)) if extra else {}
    methods = {str(k): as_map(v) for k, v in (as_map(methods.get("methods")) or methods).items() if as_map(v)}
    rows: list[tuple[str, str, dict[str, float | None]]] = []
    spreads: dict[int, dict[str, float]] = {}
    started: dict[str, str] = {}
    for i, run in enumerate(runs):
        given = methods.pop(run.folder.resolve().name, {})
        start = {c.key: run.measure("before", c.key) for c in _COLUMNS}
        end = {c.key: _given(given, c.key, run.measure("after", c.key)) for c in _COLUMNS}
        digest = run.start_digest() or f"{i}"
        if digest not in started and any(v is not None for v in start.values()):
            started[digest] = run.label
            rows.append((f"start: {run.origin}", "muted", start))
        if any(v is not None for v in end.values()):
            spreads[len(rows)] = _spread(run, given)
            rows.append((run.label, f"run {run_style(i)}", end))
    for name, values in methods.items():
        rows.append((str(values.get("label", name)), "run", {c.key: _given(values, c.key, None) for c in _COLUMNS}))
    if not rows:
        return Absent("No run has been evaluated yet, so there are no held-out figures to tabulate.")
    columns = [c for c in _COLUMNS if any(values.get(c.key) is not None for _, _, values in rows)]
    header = [Cell("")] + [Cell(c.name, title=c.title) for c in columns]
    body = [
        [Cell(name, style)]
        + [_cell(values[c.key], c, style.split(" ")[0], spreads.get(i, {}).get(c.key)) for c in columns]
        for i, (name, style, values) in enumerate(rows)
    ]
    prompts = sorted({int(n) for r in runs if (n := number(r.summary.get("prompts"))) is not None})
    count = f"{', '.join(f'{n:,}' for n in prompts)} held-out prompts. " if prompts else ""
    text = (
        f"{count}TV, JS: distance from the start of the last stage. ECE: gap between confidence and accuracy on gold "
        "tokens. Log p in nats per token: of gold captions, then of negatives with one, two or all attributes wrong."
    )
    if any(c.key == "grounding" for c in columns):
        text += " Picture: how much likelier gold captions are with their own picture than with another."
    if any(spreads.values()):
        text += " Of several seeds: the mean, ± the standard deviation over seeds."
    return Table("All methods, all measures", text, header, body)


def _spread(run: RunRecord, given: Mapping[str, Any]) -> dict[str, float]:
    """Return the standard deviation over seeds of what the run itself measured."""
    found: dict[str, float] = {}
    for column in _COLUMNS:
        values = [v for one in run.seeds if (v := one.measure("after", column.key)) is not None]
        if len(values) > 1 and column.key not in given:
            found[column.key] = statistics.stdev(values)
    return found


def _given(values: Mapping[str, Any], key: str, default: float | None) -> float | None:
    found = number(values.get(key))
    return default if found is None else found


def _cell(value: float | None, column: _Column, style: str, spread: float | None) -> Cell:
    text = text_of(None if value is None else value * column.scale, column.decimals)
    return Cell(text, style, more="" if spread is None else f"± {spread * column.scale:.{column.decimals}f}")


def drift_bars(runs: Sequence[RunRecord]) -> Block | None:
    """Return bars of TV, JS and ECE by run; None if no run has any of them."""
    said = {
        "tv": ("TV", "Total variation between the token distributions before and after"),
        "js": ("JS, bits", "Jensen–Shannon divergence between the token distributions before and after"),
        "ece": ("ECE", "Expected calibration error; the vertical tick is the start of the stage"),
    }
    panels: list[Panel] = []
    for key, (name, description) in said.items():
        bars: list[Bar] = []
        for i, run in enumerate(runs):
            value = run.measure("after", key)
            if value is not None:
                start = run.measure("before", "ece") if key == "ece" else None
                bars.append(Bar(run.label, value, run_style(i), start))
        if bars:
            panels.append(Panel(name, "", bar_chart(bars, title=f"{name} by run", description=description)))
    if not panels:
        return None
    text = (
        "How far the last stage moved the distribution over next tokens (0: not at all, 1: nothing in common), and how "
        "much confidence and accuracy differ at the end. ECE from the start (tick) to the end."
    )
    return Figure("Drift and calibration", text, panels, small=True)


def reliability(runs: Sequence[RunRecord]) -> Block:
    """Return the reliability diagram of each run, at the start and at the end of the last stage."""
    panels: list[Panel] = []
    for i, run in enumerate(runs):
        start, end = _diagrams(run)
        series = [_bins(start, "start", "muted"), _bins(end, "end", run_style(i))]
        series = [s for s in series if s.points]
        if not series:
            continue
        drawing = line_chart(
            series,
            title=f"Reliability of {run.label}",
            description="Accuracy of the likeliest token by its probability, in bins; the diagonal is calibration.",
            unit="accuracy",
            x_name="confidence",
            x_range=(0.0, 1.0),
            y_range=(0.0, 1.0),
            diagonal=True,
        )
        panels.append(Panel(run.label, run_style(i), drawing))
    if not panels:
        return Absent("No run has been evaluated or probed yet, so there is no reliability diagram.")
    text = (
        "Dashed diagonal: confidence equals accuracy. Below it the model is surer than it is right. Each dot is a bin "
        "of predictions, its area the number of them; grey is the start of the last stage."
    )
    return Figure("Reliability diagram", text, panels)


def _diagrams(run: RunRecord) -> tuple[list[Any], list[Any]]:
    """Return the bins at start and end of the last stage: of the evaluation, or of the probes where there is none."""
    found = [as_list(run.section(when).get("reliability")) for when in ("before", "after")]
    stage = run.stages.get(run.last_stage)
    if not found[1] and stage is not None and stage.probes:
        found = [as_list(stage.probes[at].get("reliability")) for at in (0, -1)]
    return found[0], found[1]


def _bins(bins: Sequence[Any], name: str, style: str) -> Series:
    points: list[tuple[float, float]] = []
    sizes: list[float] = []
    notes: list[str] = []
    for found in map(as_map, bins):
        x, y, count = (number(found.get(k)) for k in ("confidence", "accuracy", "count"))
        if x is None or y is None or count is None or count <= 0:
            continue
        points.append((x, y))
        sizes.append(count)
        notes.append(f"confidence {text_of(x, 2)}, accuracy {text_of(y, 2)}, {int(count):,} tokens")
    return Series(name, points, style, sizes, notes)
