"""Figure 3: what Stage 1 does to loss, entropy and captions. Figure 4: what Stage 2 does to distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cwdpo.errors import RunError
from cwdpo.files import read_json
from cwdpo.paper.figure_style import band, clean, colour_of
from cwdpo.report.run_record import RunRecord
from cwdpo.report.values import as_list, as_map, number

__all__ = ["figure3", "figure4"]

Groups = Mapping[str, Sequence[RunRecord]]
"""Runs by method; several of one are its seeds."""


def _by_method(runs: Sequence[RunRecord], stage: str, number_: int) -> Groups:
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        if stage in run.stages and run.stages[stage].probes:
            found.setdefault(run.objective(stage), []).append(run)
    if not found:
        raise RunError(f"{runs[0].folder}: figure {number_} needs runs with probes in {stage}; this has none")
    return found


# -- figure 3 ----------------------------------------------------------------------------------------------------------


def figure3(runs: Sequence[RunRecord]) -> tuple[Figure, list[str]]:
    """Draw loss, predictive entropy and captions over Stage 1, one colour a method."""
    groups = _by_method(runs, "stage1", 3)
    measured = [
        ("cider_top5", "CIDEr, mean of 5 beams"),
        ("correct_top5", "wholly right, of 5 beams"),
        ("accuracy", "gold token is the argmax"),
        ("ece", "calibration error (ECE)"),
    ]
    shown = [(key, title) for key, title in measured if any(r.stages["stage1"].probe(key) for r in runs)][:2]
    figure = Figure(figsize=(3.0 * (2 + len(shown)), 2.5), layout="constrained")
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(1, 2 + len(shown))))
    for i, (method, seeds) in enumerate(groups.items()):
        stages = [run.stages["stage1"] for run in seeds]
        label = f"{method} ({len(seeds)} seeds)" if len(seeds) > 1 else method
        band(panels[0], [s.metric("loss") for s in stages], colour=colour_of(i), label=label)
        gold = [s.metric("nll/chosen") for s in stages]
        if method.startswith("SFT-C") and all(gold):
            band(panels[0], gold, colour=colour_of(i), label="its NLL of gold alone", dashes=True)
        band(panels[1], [s.probe("entropy") for s in stages], colour=colour_of(i), label=label)
        for axes, (key, _) in zip(panels[2:], shown, strict=True):
            band(axes, [s.probe(key) for s in stages], colour=colour_of(i), label=label)
    clean(panels[0], "(1) training loss", x="update", y="nats per token")
    clean(panels[1], "(2) predictive entropy, held out", x="update", y="nats")
    for place, (axes, (_, title)) in enumerate(zip(panels[2:], shown, strict=True), 3):
        clean(axes, f"({place}) {title}", x="update")
    panels[0].legend()
    figure.suptitle("Stage 1 (after Figure 3)", x=0.005, ha="left", fontsize=10, weight="bold")
    return figure, _entropy_notes(groups)


def _entropy_notes(groups: Groups) -> list[str]:
    notes: list[str] = []
    for method, seeds in groups.items():
        ends = [(line[0][1], line[-1][1]) for run in seeds if (line := run.stages["stage1"].probe("entropy"))]
        first, last = (sum(column) / len(ends) for column in zip(*ends, strict=True))
        notes.append(f"{method}: predictive entropy {first:.3f} → {last:.3f} nats over Stage 1")
    return notes


# -- figure 4 ----------------------------------------------------------------------------------------------------------


def figure4(runs: Sequence[RunRecord]) -> tuple[Figure, list[str]]:
    """Draw how far Stage 2 moves the distributions, what they look like, and what it does to calibration."""
    groups = _by_method(runs, "stage2", 4)
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    grid = figure.add_gridspec(2, 12)
    top = [figure.add_subplot(grid[0, i : i + 3]) for i in (0, 3, 6, 9)]
    low = [figure.add_subplot(grid[1, i : i + 4]) for i in (0, 4, 8)]
    _bars(top[0], groups, lambda r: _drift(r, "tv"), "TV to the start of Stage 2", None)
    _bars(top[1], groups, lambda r: _drift(r, "js"), "JS to the start (bits)", None)
    _bars(top[2], groups, lambda r: _ece(r, -1), "ECE", lambda r: _ece(r, 0))
    quality = next((q for q in ("cider", "correct") if any(r.measure("after", q) is not None for r in runs)), None)
    if quality is None:
        top[3].set_visible(False)
    else:
        title = {"cider": "CIDEr, greedy", "correct": "wholly right"}[quality]
        _bars(top[3], groups, lambda r: r.measure("after", quality), title, lambda r: r.measure("before", quality))
    samples = _samples(groups)
    for axes, sample in zip(low[:2], samples, strict=False):
        _top5(axes, sample)
    for axes in low[len(samples) : 2]:
        axes.set_visible(False)
    _reliability(low[2], groups)
    figure.suptitle("Stage 2 (after Figure 4)", x=0.005, ha="left", fontsize=10, weight="bold")
    return figure, _shift_notes(groups)


def _drift(run: RunRecord, name: str) -> float | None:
    """Return the distance on the evaluation's prompts, or on the last probe where there was no evaluation."""
    value = run.measure("after", name)
    line = run.stages["stage2"].probe(name)
    return value if value is not None else (line[-1][1] if line else None)


def _ece(run: RunRecord, place: int) -> float | None:
    value = run.measure("after" if place else "before", "ece")
    line = run.stages["stage2"].probe("ece")
    return value if value is not None else (line[place][1] if line else None)


def _bars(
    axes: Axes,
    groups: Groups,
    read: Callable[[RunRecord], float | None],
    title: str,
    before: Callable[[RunRecord], float | None] | None,
) -> None:
    """Draw a bar a method at the mean over its seeds, a dot a seed, and a tick where it started."""
    for i, (_, seeds) in enumerate(groups.items()):
        values = [v for run in seeds if (v := read(run)) is not None]
        if not values:
            continue
        axes.bar(i, float(np.mean(values)), width=0.62, color=colour_of(i), alpha=0.85)
        if len(values) > 1:
            spread = np.linspace(-0.12, 0.12, len(values))
            axes.plot(i + spread, values, "o", color="black", markersize=2.6)
        axes.annotate(
            f"{np.mean(values):.3g}",
            (i, 0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            color="white",
            weight="bold",
        )
        starts = [v for run in seeds if before is not None and (v := before(run)) is not None]
        if starts:
            mean = float(np.mean(starts))
            axes.plot([i - 0.38, i + 0.38], [mean, mean], color="#444444", linewidth=1.4, linestyle=(0, (2, 1)))
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.7, max(len(groups), 2) - 0.3)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.18)
    clean(axes, title + (" (dashed: start)" if before else ""))


def _samples(groups: Groups) -> list[dict[str, Any]]:
    """Return the two places, of different prompts, at which the runs' first methods moved the distribution most."""
    read: dict[str, dict[str, Any]] = {}
    for method, seeds in groups.items():
        path = seeds[0].folder / "stage2" / "probe_tokens.json"
        if path.is_file():
            read[method] = as_map(read_json(path))
    if not read:
        return []
    first = next(iter(read.values()))
    found: list[tuple[float, dict[str, Any]]] = []
    for p, prompt in enumerate(as_list(first.get("start"))):
        places = range(len(prompt["places"]))
        moved = [max(_moved(tokens, p, place) for tokens in read.values()) for place in places]
        place = max(places, key=lambda i: moved[i])
        distributions = {
            method: (dict(map(tuple, t["start"][p]["places"][place])), dict(map(tuple, t["last"][p]["places"][place])))
            for method, t in read.items()
        }
        found.append((moved[place], {"gold": prompt["gold"], "place": place, "methods": distributions}))
    return [sample for _, sample in sorted(found, key=lambda item: -item[0])[:2]]


def _moved(tokens: Mapping[str, Any], prompt: int, place: int) -> float:
    one, other = (dict(map(tuple, tokens[when][prompt]["places"][place])) for when in ("start", "last"))
    return 0.5 * sum(abs(one.get(t, 0.0) - other.get(t, 0.0)) for t in {*one, *other})


def _top5(axes: Axes, sample: Mapping[str, Any]) -> None:
    """Draw the five likeliest tokens at a place, before (hollow) and after (full) each method."""
    methods: Mapping[str, tuple[dict[str, float], dict[str, float]]] = sample["methods"]
    mass: dict[str, float] = {}
    for before, after in methods.values():
        for side in (before, after):
            for token, p in side.items():
                mass[token] = mass.get(token, 0.0) + p
    tokens = sorted(mass, key=lambda t: -mass[t])[:5]
    width = 0.8 / len(methods)
    for i, (method, (before, after)) in enumerate(methods.items()):
        x = np.arange(len(tokens)) - 0.4 + width * (i + 0.5)
        axes.bar(x, [after.get(t, 0.0) for t in tokens], width * 0.92, color=colour_of(i), alpha=0.85, label=method)
        start = [before.get(t, 0.0) for t in tokens]
        axes.bar(x, start, width * 0.92, facecolor="none", edgecolor="black", linewidth=0.8)
    gold = sample["gold"][sample["place"]]
    axes.set_xticks(range(len(tokens)), [f"{_shown(t)}{' ✓' if t == gold else ''}" for t in tokens])
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1)
    prefix = " ".join(_shown(t) for t in sample["gold"][max(0, sample["place"] - 3) : sample["place"]])
    clean(axes, f"top tokens after “…{prefix}”" if prefix else "top first tokens", y="probability")
    axes.legend(title="outline: before", title_fontsize=7.5)


def _shown(token: str) -> str:
    text = token.strip().replace("$", r"\$")
    return text if text else "␣"


def _reliability(axes: Axes, groups: Groups) -> None:
    """Draw accuracy against confidence at the end of Stage 2; the area of a dot is its number of tokens."""
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.9)
    for i, (method, seeds) in enumerate(groups.items()):
        rows = [bar for run in seeds for bar in as_list(run.stages["stage2"].probes[-1].get("reliability"))]
        known = [b for b in rows if number(b.get("count")) and number(b.get("confidence")) is not None]
        sizes = [6 + 80 * b["count"] / max(x["count"] for x in known) for b in known]
        axes.scatter(
            [b["confidence"] for b in known],
            [b["accuracy"] for b in known],
            s=sizes,
            color=colour_of(i),
            alpha=0.75,
            linewidth=0,
            label=method,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    clean(axes, "reliability after Stage 2 (probes)", x="confidence", y="accuracy")
    axes.legend(loc="upper left")


def _shift_notes(groups: Groups) -> list[str]:
    notes: list[str] = []
    for method, seeds in groups.items():
        means = {name: _mean([_drift(run, name) for run in seeds]) for name in ("tv", "js")}
        ece = [_mean([_ece(run, place) for run in seeds]) for place in (0, -1)]
        notes.append(
            f"{method}: TV {means['tv']:.3f}, JS {means['js']:.4f} bits to the start of Stage 2; "
            f"ECE {ece[0]:.3f} → {ece[1]:.3f} ({len(seeds)} run{'s' if len(seeds) > 1 else ''})"
        )
    return [*notes, "The token panels show the places that moved most: they are extremes, not typical places."]


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else float("nan")
