"""The page: sections in order, put into one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from cwdpo._version import __version__
from cwdpo.errors import RunError, one_line
from cwdpo.files import write_text
from cwdpo.report.cooling_charts import cooling_figures
from cwdpo.report.curves import probe_figures
from cwdpo.report.diagnosis_section import findings_of
from cwdpo.report.methods_table import drift_bars, methods_table, reliability
from cwdpo.report.negatives_section import negatives_blocks
from cwdpo.report.page_blocks import Absent, Section, run_style
from cwdpo.report.pictures import picture_gallery
from cwdpo.report.provenance import counts_table, environment_table, recipe_blocks, speed_table
from cwdpo.report.read_run import read_runs
from cwdpo.report.run_record import RunRecord
from cwdpo.report.token_chart import token_figure
from cwdpo.report.training_curves import training_figures
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
    found = read_runs(runs, pool=pool)
    page = _render(found, title or _title(found), _sections(found, table))
    out = Path(out)
    try:
        write_text(out, page)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or one_line(error)}; choose another file") from None
    return out


def _title(runs: Sequence[RunRecord]) -> str:
    if len(runs) == 1:
        return runs[0].label if runs[0].label == runs[0].name else runs[0].method
    return " · ".join(run.label for run in runs)


# -- sections: one function each, in the order of the page -------------------------------------------------------------


def _sections(runs: Sequence[RunRecord], table: Mapping[str, Any] | None) -> list[Section]:
    sections = [_overview(runs, table), _stage(runs, "stage2"), _stage(runs, "stage1"), _measures(runs)]
    sections += [_pictures(runs), _negatives(runs), _made_with(runs)]
    return [s for s in sections if s.blocks]


def _overview(runs: Sequence[RunRecord], table: Mapping[str, Any] | None) -> Section:
    section = Section("overview", "Overview")
    section.blocks += findings_of(runs)
    verdicts = [compare_runs(run, runs[0]) for run in runs[1:]] if len(runs) > 1 else [describe_run(runs[0])]
    known = [v for v in verdicts if v is not None]
    section.blocks += [replace(v, folded=len(known) > 1) for v in known]
    for run in runs:
        if not run.section("after"):
            why = "it is still under way, or `evaluation.prompts` is 0. Nothing is concluded about it"
            section.blocks.append(Absent(f"{run.label} has no evaluation: {why}."))
        section.blocks += [Absent(f"{run.label}: {trouble}.") for trouble in run.troubles]
    bars = drift_bars(runs)
    section.blocks += [*([bars] if bars else []), methods_table(runs, table)]
    return section


def _stage(runs: Sequence[RunRecord], stage: str) -> Section:
    name = {"stage1": "Stage 1", "stage2": "Stage 2"}[stage]
    section = Section(stage, name)
    taking = [run for run in runs if run.enabled(stage)]
    if not taking:
        section.blocks.append(Absent(f"{name} is left out by the recipe."))
        return section
    missing = [run.label for run in taking if stage not in run.stages]
    if missing:
        section.blocks.append(Absent(f"{name} has not begun: {', '.join(missing)}."))
    if len(missing) == len(taking):
        return section
    goals = list(dict.fromkeys(run.objective(stage) for run in taking))
    section.text = f"{', '.join(goals)}. Point at a curve for its values."
    if any(run.seeds for run in taking):
        section.text += " Of several seeds, lines are means and bands what the seeds span."
    section.blocks += [*probe_figures(runs, stage), *cooling_figures(runs, stage), *training_figures(runs, stage)]
    return section


def _measures(runs: Sequence[RunRecord]) -> Section:
    stage = "stage2" if any(run.enabled("stage2") for run in runs) else "stage1"
    tokens = token_figure(runs, stage)
    return Section("calibration", "Calibration", blocks=[reliability(runs), *([tokens] if tokens else [])])


def _pictures(runs: Sequence[RunRecord]) -> Section:
    return Section("pictures", "Pictures and captions", blocks=[picture_gallery(runs)])


def _negatives(runs: Sequence[RunRecord]) -> Section:
    return Section("negatives", "Negatives", blocks=negatives_blocks(runs))


def _made_with(runs: Sequence[RunRecord]) -> Section:
    speed = speed_table(runs)
    blocks = [*recipe_blocks(runs), counts_table(runs), *([speed] if speed else []), environment_table(runs)]
    return Section("made-with", "Recipe, time, environment", blocks=blocks)


# -- HTML --------------------------------------------------------------------------------------------------------------


def _render(runs: Sequence[RunRecord], title: str, sections: Sequence[Section]) -> str:
    folder = files("cwdpo.report") / "templates"
    sources = {name: (folder / name).read_text("utf-8") for name in ("page.html.j2", "style.css", "script.js")}
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["ticked"] = _ticked
    script = sources["script.js"]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template("page.html.j2").render(
        title=title,
        runs=[_heading(i, run) for i, run in enumerate(runs)],
        folders=sum(len(run.each) for run in runs),
        sections=sections,
        style=Markup(sources["style.css"]),
        script=Markup(script),
        script_digest=digest,
        version=__version__,
    )


def _heading(index: int, run: RunRecord) -> dict[str, str]:
    about = [run.method] if run.method != run.label else []
    about += [f"{len(run.seeds)} seeds"] if run.seeds else []
    return {"label": run.label, "about": ", ".join(about), "style": run_style(index)}


def _ticked(text: str) -> Markup:
    """Escape a sentence and set what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return Markup("{}").format(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(p) if i % 2 else Markup("{}").format(p) for i, p in enumerate(parts)
    )
