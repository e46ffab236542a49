"""The cooling weight w_c by difficulty: over the updates of a stage, and where it began and ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cwdpo.report.bars import HistogramRow, histogram_rows
from cwdpo.report.page_blocks import Absent, Block, Chart, Panel, run_style
from cwdpo.report.prompt_weights import ordered_prompts, prompt_weights
from cwdpo.report.run_record import KINDS, RunRecord, StageRecord
from cwdpo.report.stage_charts import Stages, kind_style, run_panels, with_stage
from cwdpo.report.svg import Series
from cwdpo.report.ticks import text_of
from cwdpo.report.values import as_list, number

__all__ = ["cooling_charts"]


def cooling_charts(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return how the cooling weight fell, and for Stage 2 its histograms at the start and at the last reading."""
    stages = with_stage(runs, stage)
    negatives = [k for k in KINDS if k != "chosen"]
    fall = run_panels(
        [(i, run, [_line(found, kind) for kind in found.kinds if kind in negatives]) for i, run, found in stages],
        "Cooling weight by difficulty",
        "What Eq. 6 gives each kind of negative: near 1 its push counts in full, near 0 it is switched off. Line: "
        "median over prompts; band: the middle half of them. Read for every run; only CW-DPO uses it.",
        "weight",
        y_range=(0.0, 1.0),
        notes=[note for _, run, found in stages if (note := _order_note(run, found))],
    )
    return [*([fall] if fall is not None else []), *([_histograms(stages)] if stage == "stage2" else [])]


def _line(stage: StageRecord, kind: str) -> Series:
    """Return median and quartiles over the prompts of all seeds; the means, where single prompts were not kept."""
    style = kind_style(kind, stage.kinds)
    pooled = {step: w[np.isfinite(w)] for step, w in _pooled(stage, kind).items()}
    rows = [(step, *map(float, np.quantile(w, (0.25, 0.5, 0.75)))) for step, w in pooled.items() if w.size]
    if not rows:
        return Series(kind, stage.probe("kinds", kind, "cooling_weight"), style)
    band = [(step, low, high) for step, low, _, high in rows]
    return Series(kind, [(step, middle) for step, _, middle, _ in rows], style, band=band)


def _pooled(stage: StageRecord, kind: str) -> dict[float, np.ndarray]:
    """Return w_c over the prompts of all seeds, at every reading that all of them have."""
    tables: list[dict[float, np.ndarray]] = []
    for seed in stage.seeds or [stage]:
        weights = prompt_weights(seed.prompts, kind)
        steps = [number(row, "step") for row in seed.prompts[: len(weights)]]
        tables.append({step: line for step, line in zip(steps, weights, strict=True) if step is not None})
    shared = [step for step in tables[0] if all(step in table for table in tables)]
    return {step: np.concatenate([table[step] for table in tables]) for step in shared}


def _order_note(run: RunRecord, stage: StageRecord) -> str:
    """Say for how many prompts easy < medium < hard holds at every reading after the start (the paper's Figure 6)."""
    counts = [ordered_prompts(seed.prompts) for seed in stage.seeds or [stage]]
    always, _, total = (sum(column) for column in zip(*counts, strict=True))
    if not total:
        return ""
    return (
        f"{run.label}: easy < medium < hard at every reading after the start for {always} of {total} prompts "
        f"({always / total:.0%})."
    )


def _histograms(stages: Stages) -> Block:
    said = "Share of held-out responses by cooling weight, a row per kind; outline and tick: the start."
    panels: list[Panel] = []
    for i, run, stage in stages:
        rows = [row for kind in stage.kinds if (row := _histogram(kind, stage)) is not None]
        if rows:
            title = f"Cooling weights of {run.label}"
            drawing = histogram_rows(rows, title=title, description=said, x_name="cooling weight")
            panels.append(Panel(run.label, run_style(i), drawing))
    if not panels:
        return Absent("Stage 2 has not been probed, so there are no cooling weights to show.")
    text = (
        "How many held-out responses of each kind have which weight: outline when Stage 2 begins (tick: its mean), "
        "filled at the last reading. Mass at the left means negatives that Stage 2 hardly pushes at all; mass at the "
        "right is plain DPO."
    )
    return Chart("Cooling weights, start and now", text, panels)


def _histogram(kind: str, stage: StageRecord) -> HistogramRow | None:
    first, last = stage.probes[0], stage.probes[-1]
    before, after = (_counts(as_list(row, "kinds", kind, "cooling_histogram")) for row in (first, last))
    if not after or len(before) != len(after):
        return None
    mean = number(first, "kinds", kind, "cooling_weight")
    marks = {} if mean is None else {f"{kind}: mean {text_of(mean, 2)} at the start": mean}
    return HistogramRow(kind, after, kind_style(kind, stage.kinds), marks, before)


def _counts(bins: Sequence[Any]) -> list[int]:
    return [int(number(n) or 0) for n in bins]
