"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwdpo.files import write_json, write_text
from cwdpo.paper.results import MEASURES

__all__ = ["costs_markdown", "markdown", "rates_chosen", "write_costs", "write_table"]

_PAPER = {"bleu4": "B@4", "meteor": "M", "cider": "C", "spice": "S", "tv": "TV", "js": "JS"}
_KEY = {"correct": 100.0, "cider": 1.0}
"""Measures whose differences are shown, and their factors."""


def write_table(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `NAME.json`, `.md`, `.csv` and `.tex`; return their paths."""
    name = str(result["name"])
    write_json(folder / f"{name}.json", result)
    header, rows = _cells(result)
    texts = {"md": markdown(result), "csv": _csv(result), "tex": _latex(result, header, rows)}
    for ending, text in texts.items():
        write_text(folder / f"{name}.{ending}", text)
    return [folder / f"{name}.{ending}" for ending in ("json", *texts)]


def markdown(result: Mapping[str, Any]) -> str:
    """Return a table with what was run, ours and the paper's figures side by side."""
    header, rows = _cells(result)
    lines = [f"### {result['name']}: {result['title']}", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    run = result.get("run", {})
    said = [
        "Mean ± standard deviation over seeds; differences to "
        f"{_label(result)} are paired by seed, with 95 % intervals (Student's t).",
        '"paper" is what the paper prints for Qwen2.5-VL-72B on COCO: another model and other data.',
    ]
    if run:
        said.append(f"{run['scale']}; {run['date']}, {run['cpu']}; `{run['command']}`.")
    if result.get("rates"):
        said.append(rates_chosen(result["rates"], [float(rate) for rate in run.get("rates", ())]))
    if result["note"]:
        said.append(str(result["note"]))
    return "\n".join([*lines, "", " ".join(said), ""])


def rates_chosen(rates: Mapping[str, float], tried: Sequence[float]) -> str:
    """Return which learning rate every method was given, and whose may lie beyond those that were tried."""
    by_rate = {rate: sorted(entry for entry, chosen in rates.items() if chosen == rate) for rate in tried}
    said = "; ".join(f"{rate:g}: {', '.join(entries) or 'none'}" for rate, entries in by_rate.items())
    edges = "The lowest and the highest are the grid's ends: what is best there might be better beyond."
    return f"Learning rates, chosen on a seed of its own ({said}). {edges}"


def costs_markdown(result: Mapping[str, Any]) -> str:
    """Return Table 7 with ours and the paper's words side by side."""
    rows = [["", "seconds an update", "ratio (median, least to most)", "paper"]]
    for row in result["rows"]:
        r = row["ratio"]
        cells = [row["label"], f"{row['seconds']:.3f}", f"{r['median']:.2f}× ({r['least']:.2f} to {r['most']:.2f})"]
        rows.append([*cells, row["paper"]])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    run = result["run"]
    said = (
        f"Processor seconds on one thread, {result['repeats']} turns of {result['updates']} updates, each ratio within "
        f"a turn. {run['scale']}; {run['date']}, {run['cpu']}; `{run['command']}`."
    )
    return "\n".join([f"### {result['name']}: {result['title']}", "", *lines, "", said, ""])


def write_costs(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `table7.json`, `.md` and `.csv`; return their paths."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["label", "entry", "seconds", "ratio", "ratio_least", "ratio_most", "paper"])
    for row in result["rows"]:
        writer.writerow([row["label"], row["entry"], row["seconds"], *row["ratio"].values(), row["paper"]])
    paths = [folder / f"table7.{ending}" for ending in ("json", "md", "csv")]
    write_json(paths[0], result)
    write_text(paths[1], costs_markdown(result))
    write_text(paths[2], out.getvalue())
    return paths


def _label(result: Mapping[str, Any]) -> str:
    return next((row["label"] for row in result["rows"] if row["entry"] == result["against"]), result["against"])


def _shown(result: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Return measures, differences and the paper's columns that some row has."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    measures = [name for name in MEASURES if any(name in row["measures"] for row in rows)]
    minus = f"minus {result['against']}"
    compared = [name for name in _KEY if any(name in row[minus] for row in rows)]
    paper = [name for name in _PAPER if any(name in row["paper"] for row in rows)]
    return measures, compared, paper


def _cells(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    measures, compared, paper = _shown(result)
    header = ["", "start", "seeds", *(MEASURES[name][0] for name in measures)]
    header += [f"Δ {MEASURES[name][0]}" for name in compared] + [f"paper {_PAPER[name]}" for name in paper]
    rows: list[list[str]] = []
    for row in result["rows"]:
        label = f"{row['group']}: {row['label']}" if row["group"] else row["label"]
        first = next(iter(row["start"]["hashes"].values()), "")
        found = row["measures"]
        cells = [label, f"{row['start']['title']} {first[:8]}", str(max(m["seeds"] for m in found.values()))]
        cells += [_mean(found.get(name), *MEASURES[name][1:]) for name in measures]
        minus = row[f"minus {result['against']}"]
        cells += [_difference(minus.get(name), _KEY[name]) for name in compared]
        cells += [f"{row['paper'][name]:g}" if name in row["paper"] else "" for name in paper]
        rows.append(cells)
    return header, rows


def _mean(found: Mapping[str, Any] | None, factor: float, decimals: int) -> str:
    if found is None:
        return "–"
    mean = f"{factor * found['mean']:.{decimals}f}"
    return mean if found["sd"] is None else f"{mean} ± {factor * found['sd']:.{decimals}f}"


def _difference(found: Mapping[str, Any] | None, factor: float) -> str:
    if found is None:
        return ""
    mean = f"{factor * found['mean']:+.1f}"
    return f"{mean} [{factor * found['low']:+.1f}, {factor * found['high']:+.1f}]" if "low" in found else mean


def _csv(result: Mapping[str, Any]) -> str:
    """Return a line per row and measure, with every number in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = ("mean", "sd", "seeds")
    ends = ("mean", "low", "high")
    against = f"minus_{result['against']}"
    writer.writerow(["label", "entry", "rate", "start", "measure", *fields, *(f"{against}_{e}" for e in ends), "paper"])
    for row in result["rows"]:
        for name, found in row["measures"].items():
            minus = row[f"minus {result['against']}"].get(name, {})
            cells = [row["label"], row["entry"], row["rate"], row["start"]["title"], name]
            cells += [found[key] for key in fields] + [minus.get(key) for key in ends] + [row["paper"].get(name)]
            writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


_TEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "±": r"$\pm$",
    "–": "--",
    "→": r"$\to$",
    "Δ": r"$\Delta$",
    "ℓ": r"$\ell$",
    "τ": r"$\tau$",
}


def _latex(result: Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(_TEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    title = "".join(_TEX.get(c, c) for c in str(result["title"]))
    body = [line(header), r"\midrule", *(line(row) for row in rows)]
    columns = "ll" + "r" * (len(header) - 2)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{title}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
