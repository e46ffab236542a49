"""The table of methods and the bars: held-out figures before and after the last stage."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.probes.figures import EVALUATED, Figure
from cwdpo.report.bars import Bar, bar_chart
from cwdpo.report.page_blocks import Absent, Block, Cell, Chart, Panel, Table, run_style
from cwdpo.report.run_record import RunRecord
from cwdpo.report.svg import Series, line_chart
from cwdpo.report.ticks import text_of
from cwdpo.report.values import as_list, as_map, number

__all__ = ["drift_bars", "methods_table", "reliability"]

_BETTER = {"higher": "; higher is better", "lower": "; lower is better", "none": ""}


def methods_table(runs: Sequence[RunRecord], extra: Mapping[str, Any] | None) -> Block:
    """Return the table: a row at the start and a row at the end for each run, then the methods of `extra`."""
    methods = as_map(dict(extra or {}))
    methods = {str(k): as_map(v) for k, v in (as_map(methods, "methods") or methods).items() if as_map(v)}
    rows: list[tuple[str, str, dict[str, float]]] = []
    spreads: dict[int, dict[str, float]] = {}
    started = set[str]()
    for i, run in enumerate(runs):
        given = _numbers(methods.pop(run.folder.resolve().name, {}))
        start, end = (_measures(run, when) for when in ("before", "after"))
        digest = run.start_digest() or f"{i}"
        if start and digest not in started:
            started.add(digest)
            rows.append((f"start: {run.origin}", "muted", start))
        if end or given:
            spreads[len(rows)] = {name: sd for name, sd in _spread(run).items() if name not in given}
            rows.append((run.label, f"run {run_style(i)}", end | given))
    rows += [(str(values.get("label", name)), "run", _numbers(values)) for name, values in methods.items()]
    if not rows:
        return Absent("No run has been evaluated yet, so there are no held-out figures to tabulate.")
    columns = [figure for name, figure in EVALUATED.items() if any(name in values for _, _, values in rows)]
    header = [Cell("")] + [Cell(f.heading, title=(f.about or f.title) + _BETTER[f.better]) for f in columns]
    body = [
        [Cell(name, style)] + [_cell(f, values, style.split(" ")[0], spreads.get(i, {})) for f in columns]
        for i, (name, style, values) in enumerate(rows)
    ]
    prompts = sorted({int(n) for r in runs if (n := number(r.summary, "prompts")) is not None})
    count = f"{', '.join(f'{n:,}' for n in prompts)} held-out prompts. " if prompts else ""
    text = (
        f"{count}TV, JS: distance from the start of the last stage. ECE: gap between confidence and accuracy on gold "
        "tokens. Log p in nats per token: of gold captions, then of negatives with one, two or all attributes wrong."
    )
    if EVALUATED["grounding"] in columns:
        text += " Picture: how much likelier gold captions are with their own picture than with another."
    if any(spreads.values()):
        text += " Of several seeds: the mean, ± the standard deviation over seeds."
    return Table("All methods, all measures", text, header, body)


def _measures(run: RunRecord, when: str) -> dict[str, float]:
    return {name: v for name in EVALUATED if (v := run.measure(when, name)) is not None}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: v for name in EVALUATED if (v := number(values, name)) is not None}


def _spread(run: RunRecord) -> dict[str, float]:
    """Return the standard deviation over seeds of what the run itself measured."""
    values = {name: [v for one in run.seeds if (v := one.measure("after", name)) is not None] for name in EVALUATED}
    return {name: statistics.stdev(column) for name, column in values.items() if len(column) > 1}


def _cell(figure: Figure, values: Mapping[str, float], style: str, spread: Mapping[str, float]) -> Cell:
    value, sd = values.get(figure.name), spread.get(figure.name)
    text = text_of(None if value is None else figure.scaled(value), figure.decimals)
    return Cell(text, style, more="" if sd is None else f"± {figure.text(sd)}")


def drift_bars(runs: Sequence[RunRecord]) -> list[Block]:
    """Return bars of TV, JS and ECE by run; nothing if no run has any of them."""
    panels: list[Panel] = []
    for figure in (EVALUATED[name] for name in ("tv", "js", "ece")):
        bars: list[Bar] = []
        for i, run in enumerate(runs):
            value = run.measure("after", figure.name)
            start = run.measure("before", figure.name) if figure.name == "ece" else None
            bars += [] if value is None else [Bar(run.label, value, run_style(i), start)]
        if bars:
            name = f"{figure.short}, {figure.unit}" if figure.unit else figure.short
            said = f"{figure.about}; the vertical tick is the start of the stage"
            panels.append(Panel(name, "", bar_chart(bars, title=f"{name} by run", description=said)))
    text = (
        "How far the last stage moved the distribution over next tokens (0: not at all, 1: nothing in common), and how "
        "much confidence and accuracy differ at the end. ECE from the start (tick) to the end."
    )
    return [Chart("Drift and calibration", text, panels, small=True)] if panels else []


def reliability(runs: Sequence[RunRecord]) -> Block:
    """Return the reliability diagram of each run, at the start and at the end of the last stage."""
    panels: list[Panel] = []
    for i, run in enumerate(runs):
        start, end = _diagrams(run)
        series = [s for s in (_bins(start, "start", "muted"), _bins(end, "end", run_style(i))) if s.points]
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
    return Chart("Reliability diagram", text, panels)


def _diagrams(run: RunRecord) -> list[list[Any]]:
    """Return the bins at start and end of the last stage: of the evaluation, or of the probes where there is none."""
    bins = [as_list(run.summary, when, "reliability") for when in ("before", "after")]
    stage = run.stages.get(run.last_stage)
    if not bins[1] and stage is not None and stage.probes:
        return [as_list(stage.probes[at], "reliability") for at in (0, -1)]
    return bins


def _bins(bins: Sequence[Any], name: str, style: str) -> Series:
    rows = [[number(row, key) for key in ("confidence", "accuracy", "count")] for row in bins]
    known = [(x, y, n) for x, y, n in rows if x is not None and y is not None and n is not None and n > 0]
    notes = [f"confidence {text_of(x, 2)}, accuracy {text_of(y, 2)}, {int(n):,} tokens" for x, y, n in known]
    return Series(name, [(x, y) for x, y, _ in known], style, [n for _, _, n in known], notes)
