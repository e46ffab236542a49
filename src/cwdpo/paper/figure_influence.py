"""Figure 5: one-step influence taken apart. Figure 6: cooling weights of hard, medium and easy negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cwdpo.errors import RunError
from cwdpo.files import read_jsonl
from cwdpo.paper.figure_style import Line, clean, colour_of
from cwdpo.report.prompt_weights import DIFFICULTIES, ordered_prompts, prompt_weights
from cwdpo.report.run_record import RunRecord

__all__ = ["figure5", "figure6"]

_ROWS = (
    ("delta_log_pi_sq", "‖Δ log π‖²", "update influence", 0),
    ("a_belief_sq", "‖A_o‖² per token", "belief geometry", +1),
    ("g_observed_sq", "‖G_o‖² per token", "residual, observed", -1),
    ("g_update_sq", "‖G_u‖²", "residual, update", -1),
    ("lb_k", "LB_K", "proxy of the kernel", +1),
)
"""Field, axis, what it is, and the direction that the paper claims: up, down, or neither."""

_Rows = Sequence[Mapping[str, Any]]

_PER_TOKEN = {"a_belief_sq", "g_observed_sq"}


def figure5(runs: Sequence[RunRecord]) -> tuple[Figure, list[str]]:
    """Draw the parts of the one-step influence over training: a column an update sample, a line an observed one.

    Of several runs the first is drawn; what is said of the paper's claims counts the lines of all.
    """
    run = runs[0]
    stage = next((s for s in ("stage2", "stage1") if (run.folder / s / "influence.jsonl").is_file()), None)
    if stage is None:
        raise RunError(
            f"{run.folder}: figure 5 needs influence.jsonl; train with --set probes.influence={{}} to have it written"
        )
    rows = list(read_jsonl(run.folder / stage / "influence.jsonl"))
    updates = list(dict.fromkeys(row["update"] for row in rows))[:3]
    observed = list(dict.fromkeys(row["observed"] for row in rows))
    figure = Figure(figsize=(3.1 * len(updates) + 0.6, 1.55 * len(_ROWS)), layout="constrained")
    panels: Any = figure.subplots(len(_ROWS), len(updates), squeeze=False, sharex=True, sharey="row")
    for column, update in enumerate(updates):
        for line, (field, label, what, _) in enumerate(_ROWS):
            axes: Axes = panels[line][column]
            for i, other in enumerate(observed):
                points = _line(rows, update, other, field)
                same = field == "g_update_sq"  # for every observed sample
                colour = "#444444" if same else colour_of(i)
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, label=f"o{i + 1}")
                if same:
                    break
            if field in ("delta_log_pi_sq", "lb_k", "g_update_sq"):
                axes.set_yscale("log")
            clean(
                axes,
                f"update sample {column + 1}" if line == 0 else "",
                x="update" if line == len(_ROWS) - 1 else "",
                y=f"{label}\n{what}" if column == 0 else "",
            )
    panels[0][-1].legend(ncols=2, title="observed sample", title_fontsize=7.5)
    title = f"One-step influence during {run.objective(stage)} (after Figure 5), η = {rows[0]['eta']:g}"
    figure.suptitle(title, x=0.005, ha="left", fontsize=10, weight="bold")
    paths = [one.folder / stage / "influence.jsonl" for one in runs]
    tables = [list(read_jsonl(path)) for path in paths if path.is_file()]
    return figure, [_claim(tables, *row) for row in _ROWS]


def _line(rows: _Rows, update: str, observed: str, field: str) -> Line:
    kept = [r for r in rows if r["update"] == update and r["observed"] == observed and r["kind"] == "chosen"]
    return [(r["step"], r[field] / (r["tokens"] if field in _PER_TOKEN else 1)) for r in kept]


def _claim(tables: Sequence[_Rows], field: str, label: str, what: str, claimed: int) -> str:
    """Say whether a part moves as the paper says, from Spearman's rank correlation of every line with the updates."""
    trends = [trend for rows in tables for trend in _trends(rows, field)]
    rising, falling = (sum(sign * t > 0.5 for t in trends) for sign in (1, -1))
    words = {0: "stays", 1: "rises", -1: "falls"}
    agree = {0: len(trends) - rising - falling, 1: rising, -1: falling}[claimed]
    verdict = "holds" if agree > len(trends) / 2 else "does not hold"
    return (
        f"{label} ({what}): rises in {rising}, falls in {falling} of {len(trends)} lines; "
        f"the paper's claim that it {words[claimed]} {verdict}"
    )


def _trends(rows: _Rows, field: str) -> list[float]:
    pairs = list(dict.fromkeys((r["update"], r["observed"]) for r in rows))
    if field == "g_update_sq":  # the same for every observed sample
        pairs = list({u: (u, o) for u, o in pairs}.values())
    return [_trend(_line(rows, u, o, field)) for u, o in pairs]


def _trend(line: Line) -> float:
    if len(line) < 3:
        return 0.0
    values = [y for _, y in line]
    ranks = np.argsort(np.argsort(values))
    found = np.corrcoef(np.arange(len(values)), ranks)[0, 1]
    return 0.0 if math.isnan(found) else float(found)


# -- figure 6 ----------------------------------------------------------------------------------------------------------

_COLOURS = {"easy": "#0072B2", "medium": "#E69F00", "hard": "#009E73"}
"""The paper's colours, in tones that colour-blind readers can tell apart."""


def figure6(runs: Sequence[RunRecord]) -> tuple[Figure, list[str]]:
    """Draw w_c of each difficulty over Stage 2: three prompts, and all prompts with their quartiles."""
    files = [run.folder / "stage2" / "probe_prompts.jsonl" for run in runs]
    read = [list(read_jsonl(path)) for path in files if path.is_file()]
    read = [rows for rows in read if rows and all(d in rows[0]["logp_mean"] for d in DIFFICULTIES)]
    if not read:
        raise RunError(f"{runs[0].folder}: figure 6 needs probe_prompts.jsonl with easy, medium and hard negatives")
    figure = Figure(figsize=(11.0, 2.7), layout="constrained")
    panels: Any = figure.subplots(1, 4, sharey=True)
    weights = [{kind: prompt_weights(rows, kind) for kind in DIFFICULTIES} for rows in read]
    steps = [row["step"] for row in read[0]]
    for place, axes in enumerate(panels[:3]):
        for difficulty, colour in _COLOURS.items():
            values = weights[0][difficulty][:, place] if place < weights[0][difficulty].shape[1] else []
            axes.plot(steps[: len(values)], values, color=colour, label=difficulty, marker="o", markersize=2.2)
        clean(axes, f"probe {place + 1}", x="update", y="cooling weight w_c" if place == 0 else "")
    for difficulty, colour in _COLOURS.items():
        shared = min(len(w[difficulty]) for w in weights)
        pooled = np.concatenate([w[difficulty][:shared] for w in weights], axis=1)
        axes = panels[3]
        axes.plot(steps[:shared], np.nanmedian(pooled, 1), color=colour, label=difficulty)
        low, high = np.nanquantile(pooled, (0.25, 0.75), axis=1)
        axes.fill_between(steps[:shared], low, high, color=colour, alpha=0.18, linewidth=0)
    count = sum(w["easy"].shape[1] for w in weights)
    clean(panels[3], f"all {count} probes: median, quartiles", x="update")
    panels[0].set_ylim(0, 1)
    panels[0].legend(title="negatives", title_fontsize=7.5)
    title = f"Cooling weights by difficulty, {runs[0].objective('stage2')} (after Figure 6)"
    figure.suptitle(title, x=0.005, ha="left", fontsize=10, weight="bold")
    return figure, [_order_note(read)]


def _order_note(read: Sequence[_Rows]) -> str:
    """Say for how many prompts easy < medium < hard holds at every reading after the start, and at the last one."""
    always, last, total = (sum(column) for column in zip(*map(ordered_prompts, read), strict=True))
    if not total:
        return "no prompt has easy, medium and hard negatives at every reading"
    return (
        f"easy < medium < hard at every reading after the start for {always} of {total} prompts "
        f"({always / total:.0%}), at the last reading for {last} ({last / total:.0%})"
    )
