"""The report: its sections in order, each a function from runs to blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cwdpo.errors import printable
from cwdpo.report.benchmarks_section import benchmark_blocks
from cwdpo.report.cooling_charts import cooling_charts
from cwdpo.report.diagnosis_section import findings_blocks
from cwdpo.report.methods_table import drift_bars, methods_table, reliability
from cwdpo.report.negatives_section import negatives_blocks
from cwdpo.report.page_blocks import Absent, Block, Section, run_style
from cwdpo.report.pictures import caption_gallery
from cwdpo.report.provenance import counts_table, environment_table, recipe_blocks, speed_table
from cwdpo.report.read_run import read_runs
from cwdpo.report.render import write_page
from cwdpo.report.run_record import STAGES, RunRecord
from cwdpo.report.stage_charts import probe_charts, training_charts
from cwdpo.report.token_chart import token_charts
from cwdpo.report.verdict import compare_runs, describe_run

__all__ = ["write_report"]


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    table: Mapping[str, Any] | None = None,
    pool: bool = True,
) -> Path:
    """Write one self-contained HTML file about one or several run directories, side by side.

    Args:
        runs: Run directories, finished or under way. Of several, the first is what the others are compared with.
        out: The file to write.
        title: Heading; default the recipe's `name`, or the methods.
        table: Further methods for the table: `{name: {measure: value}}`, or such a mapping under `methods`. Where a
            name is a run's folder name, its values take the place of the run's own.
        pool: Show runs of one recipe with different seeds as one, with means and what the seeds span.

    Returns:
        `out`.

    Raises:
        RunError: A folder is no run directory, or `out` cannot be written.
    """
    read = read_runs(runs, pool=pool)
    heads = [_heading(i, run) for i, run in enumerate(read)]
    folders = sum(len(run.each) for run in read)
    return write_page(Path(out), printable(title or _title(read)), _sections(read, table), runs=heads, folders=folders)


def _sections(runs: Sequence[RunRecord], table: Mapping[str, Any] | None) -> list[Section]:
    """Return the chapters of the page: where a new one is put."""
    last = "stage2" if any(run.enabled("stage2") for run in runs) else "stage1"
    return [
        Section("overview", "Overview", _overview(runs, table)),
        Section("benchmarks", "Benchmarks", benchmark_blocks(runs)),
        _stage(runs, "stage2"),
        _stage(runs, "stage1"),
        Section("calibration", "Calibration", [reliability(runs), *token_charts(runs, last)]),
        Section("pictures", "Pictures and captions", [caption_gallery(runs)]),
        Section("negatives", "Negatives", negatives_blocks(runs)),
        Section(
            "made-with",
            "Recipe, time, environment",
            [*recipe_blocks(runs), counts_table(runs), *speed_table(runs), environment_table(runs)],
        ),
    ]


def _overview(runs: Sequence[RunRecord], table: Mapping[str, Any] | None) -> list[Block]:
    verdicts = [compare_runs(run, runs[0]) for run in runs[1:]] if len(runs) > 1 else [describe_run(runs[0])]
    known = [v for v in verdicts if v is not None]
    shown: list[Block] = [replace(v, folded=len(known) > 1) for v in known]
    blocks = [*shown, *findings_blocks(runs)] if len(runs) == 1 else [*findings_blocks(runs), *shown]
    for run in runs:
        if not run.summary.get("after"):
            why = "it is still under way, or `evaluation.prompts` is 0. Nothing is concluded about it"
            blocks.append(Absent(f"{run.label} has no evaluation: {why}."))
        blocks += [Absent(f"{run.label}: {trouble}.") for trouble in run.troubles]
    return [*blocks, *drift_bars(runs), methods_table(runs, table)]


def _stage(runs: Sequence[RunRecord], stage: str) -> Section:
    name, taking = STAGES[stage], [run for run in runs if run.enabled(stage)]
    if not taking:
        return Section(stage, name, [Absent(f"{name} is left out by the recipe.")])
    missing = [run.label for run in taking if stage not in run.stages]
    absent = [Absent(f"{name} has not begun: {', '.join(missing)}.")] if missing else []
    if len(missing) == len(taking):
        return Section(stage, name, absent)
    text = f"{', '.join(dict.fromkeys(run.objective(stage) for run in taking))}. Point at a curve for its values."
    if any(run.seeds for run in taking):
        text += " Of several seeds, lines are means and bands what the seeds span."
    charts = [*probe_charts(runs, stage), *cooling_charts(runs, stage), *training_charts(runs, stage)]
    return Section(stage, name, [*absent, *charts], text)


def _title(runs: Sequence[RunRecord]) -> str:
    if len(runs) == 1:
        return runs[0].label if runs[0].label == runs[0].name else runs[0].method
    return " · ".join(run.label for run in runs)


def _heading(index: int, run: RunRecord) -> dict[str, str]:
    about = [run.method] if run.method != run.label else []
    about += [f"{len(run.seeds)} seeds"] if run.seeds else []
    return {"label": run.label, "about": ", ".join(about), "style": run_style(index)}
