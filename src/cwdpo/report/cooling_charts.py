"""The cooling weight w_c by difficulty: over the updates of a stage, and where it began and ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cwdpo.report.bars import HistogramRow, histogram_rows
from cwdpo.report.curves import Stages, kind_style, line_panels, with_stage
from cwdpo.report.page_blocks import Absent, Block, Figure, Panel, run_style
from cwdpo.report.prompt_weights import ordered_prompts, prompt_weights
from cwdpo.report.run_record import KINDS, RunRecord, StageRecord, as_list, as_map, number
from cwdpo.report.svg import Series
from cwdpo.report.ticks import text_of

__all__ = ["cooling_figures"]

_NEGATIVES = tuple(k for k in KINDS if k != "chosen")


def cooling_figures(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return how the cooling weight fell, and for Stage 2 its histograms at the start and at the last reading."""
    stages = with_stage(runs, stage)
    drawn = [(i, run, [_line(found, kind) for kind in found.kinds if kind in _NEGATIVES]) for i, run, found in stages]
    notes = [note for _, run, found in stages if (note := _order_note(run, found))]
    fall = line_panels(
        drawn,
        "Cooling weight by difficulty",
        "What Eq. 6 gives each kind of negative: near 1 its push counts in full, near 0 it is switched off. Line: "
        "median over prompts; band: the middle half of them. Read for every run; only CW-DPO uses it.",
        "weight",
        y_range=(0.0, 1.0),
        notes=notes,
    )
    blocks: list[Block] = [fall] if fall is not None else []
    return [*blocks, _histograms(stages)] if stage == "stage2" else blocks


def _line(stage: StageRecord, kind: str) -> Series:
    """Return median and quartiles over the prompts of all seeds; the means, where single prompts were not kept."""
    rows: list[tuple[float, np.ndarray]] = []
    for step, values in _pooled(stage, kind).items():
        known = values[np.isfinite(values)]
        if known.size:
            rows.append((step, np.quantile(known, (0.25, 0.5, 0.75))))
    style = kind_style(kind, stage.kinds)
    if not rows:
        return Series(kind, stage.probe("kinds", kind, "cooling_weight"), style)
    band = [(step, float(low), float(high)) for step, (low, _, high) in rows]
    return Series(kind, [(step, float(middle)) for step, (_, middle, _) in rows], style, band=band)


def _pooled(stage: StageRecord, kind: str) -> dict[float, np.ndarray]:
    """Return w_c over the prompts of all seeds, at every reading that all of them have."""
    tables: list[dict[float, np.ndarray]] = []
    for seed in stage.seeds or [stage]:
        weights = prompt_weights(seed.prompts, kind)
        steps = [number(row.get("step")) for row in seed.prompts[: len(weights)]]
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
    panels: list[Panel] = []
    for i, run, stage in stages:
        kinds = [as_map(stage.probes[at].get("kinds")) if stage.probes else {} for at in (0, -1)]
        rows = [row for kind in stage.kinds if (row := _histogram(kind, stage, kinds)) is not None]
        if rows:
            said = "Share of held-out responses by cooling weight, a row per kind; outline and tick: the start."
            drawing = histogram_rows(
                rows, title=f"Cooling weights of {run.label}", description=said, x_name="cooling weight"
            )
            panels.append(Panel(run.label, run_style(i), drawing))
    if not panels:
        return Absent("Stage 2 has not been probed, so there are no cooling weights to show.")
    text = (
        "How many held-out responses of each kind have which weight: outline when Stage 2 begins (tick: its mean), "
        "filled at the last reading. Mass at the left means negatives that Stage 2 hardly pushes at all; mass at the "
        "right is plain DPO."
    )
    return Figure("Cooling weights, start and now", text, panels)


def _histogram(kind: str, stage: StageRecord, kinds: Sequence[Mapping[str, Any]]) -> HistogramRow | None:
    before, after = ([int(number(n) or 0) for n in as_list(_at(k, kind, "cooling_histogram"))] for k in kinds)
    if not after or len(before) != len(after):
        return None
    mean = number(_at(kinds[0], kind, "cooling_weight"))
    marks = {} if mean is None else {f"{kind}: mean {text_of(mean, 2)} at the start": mean}
    return HistogramRow(kind, after, kind_style(kind, stage.kinds), marks, before)


def _at(kinds: Mapping[str, Any], kind: str, name: str) -> Any:
    return as_map(kinds.get(kind)).get(name)
