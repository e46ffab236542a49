"""Results as tables on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from cwdpo.cli.terminal.console import results, table_of
from cwdpo.evaluation.intervals import interval_text
from cwdpo.probes.figures import EVALUATED, Figure, evaluated

__all__ = ["demo_table", "summary_table"]


def _figures(title: str, rows: Mapping[str, Mapping[str, Any]], known: Mapping[str, Figure] = EVALUATED) -> Table:
    figures = [figure for name, figure in known.items() if any(name in row for row in rows.values())]
    table = table_of(title, "", *(f">{figure.heading}" for figure in figures))
    for name, row in rows.items():
        table.add_row(name, *(figure.text(row[figure.name]) if figure.name in row else "–" for figure in figures))
    return table


def demo_table(result: Mapping[str, Any]) -> None:
    """Print the demo's methods, and their paired differences to SFT → DPO."""
    console = results()
    rows: dict[str, Mapping[str, Any]] = {}
    for arm in result["methods"].values():
        if (start := f"{arm['name'].rpartition(' → ')[0]} (before)") not in rows:
            rows[start] = arm["before"]
    rows |= {arm["name"]: arm for arm in result["methods"].values()}
    console.print(
        _figures(f"{result['pictures']} held-out pictures; log p per token, drift against Stage 2's start", rows)
    )
    for arm, paired in result["paired"].items():
        text = "; ".join(
            f"{label} {100 * d['mean']:+.1f} {interval_text(d, '+.1f', 100)} points"
            if key == "correct"
            else f"{label} {d['mean']:+.3f} {interval_text(d, '+.3f')}"
            for key, label in (("correct", "correct"), ("logp_chosen", "log p gold"))
            for d in (paired[key],)
        )
        console.print(f"{result['methods'][arm]['name']} minus SFT → DPO (paired, 95 %): {text}")


def summary_table(summary: Mapping[str, Any]) -> None:
    """Print a run's evaluation: base, before and after the last stage."""
    rows: dict[str, dict[str, Any]] = {}
    for name in ("base", "before", "after"):
        part = summary[name]
        rows[name] = {**part, **{f"logp_{kind}": value for kind, value in part.get("logp", {}).items()}}
        rows[name].pop("grounding", None)  # a section of its own in the summary, not a number
    results().print(_figures(f"{summary['prompts']} held-out prompts", rows, evaluated(summary)))
