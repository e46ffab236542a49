"""What finished runs found, over seeds: means, standard deviations, paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.evaluation.intervals import mean_row
from cwdpo.files import read_json
from cwdpo.paper.arms import ARMS, BASE, STARTS
from cwdpo.paper.paper_tables import Table
from cwdpo.paper.run_plan import Workshop

__all__ = ["MEASURES", "differences", "figures_of", "table_results"]

MEASURES: Mapping[str, tuple[str, float, int]] = {
    "correct": ("right, %", 100, 1),
    "cider": ("CIDEr", 1, 1),
    "bleu4": ("BLEU-4", 1, 1),
    "meteor": ("METEOR", 1, 1),
    "spice": ("SPICE", 1, 1),
    "logp_chosen": ("log p gold", 1, 3),
    "entropy": ("entropy", 1, 3),
    "top1": ("top-1", 1, 3),
    "ece": ("ECE", 1, 3),
    "tv": ("TV", 1, 3),
    "js": ("JS", 1, 3),
}
"""Heading, factor and decimals."""

Rates = Mapping[str, float]


def figures_of(shop: Workshop, entry: str, seed: int, rates: Rates) -> dict[str, float] | None:
    """Return what an entry measured with a seed, or None where its run is not finished."""
    summary = shop.summary(shop.job(entry, seed, rates))
    if summary is None:
        return None
    part = summary["base" if entry == BASE else "after"]
    # Drift is measured against the start of Stage 2: a row without one has none.
    own = [name for name in MEASURES if entry in ARMS or name not in ("tv", "js")]
    known = {name: part[name] for name in own if part.get(name) is not None}
    return known | {f"logp_{kind}": value for kind, value in part["logp"].items()}


def differences(
    shop: Workshop, one: str, other: str, measure: str, seeds: Sequence[int], rates: Rates
) -> tuple[list[float], dict[str, float]] | None:
    """Return `one` − `other` by seed, and the mean with its 95 % interval; None where no seed has both."""
    values: list[float] = []
    for seed in seeds:
        a, b = figures_of(shop, one, seed, rates), figures_of(shop, other, seed, rates)
        if a is not None and b is not None and measure in a and measure in b:
            values.append(a[measure] - b[measure])
    if not values:
        return None
    return values, mean_row(values) | {"seeds": len(values)}


def table_results(shop: Workshop, table: Table, seeds: Sequence[int], rates: Rates) -> dict[str, Any]:
    """Return a table's rows: for every measure mean, sd and seeds, and the difference to the row held against."""
    rows: list[dict[str, Any]] = []
    for row in table.rows:
        found = [f for seed in seeds if (f := figures_of(shop, row.entry, seed, rates)) is not None]
        if not found:
            continue
        measures = {
            name: {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": len(values),
            }
            for name in found[0]
            if len(values := [f[name] for f in found if name in f]) == len(found)
        }
        minus = {}
        if row.entry != table.against:
            for name in measures:
                if (pair := differences(shop, row.entry, table.against, name, seeds, rates)) is not None:
                    minus[name] = pair[1]
        arm = ARMS.get(row.entry)
        rows.append(
            {
                "label": row.label,
                "group": row.group,
                "entry": row.entry,
                "rate": None if arm is None else rates.get(row.entry, shop.scale.rate),
                "start": _start_of(shop, row.entry, seeds, rates),
                "measures": measures,
                f"minus {table.against}": minus,
                "paper": dict(row.paper),
            }
        )
    return {"name": table.name, "title": table.title, "against": table.against, "note": table.note, "rows": rows}


def _start_of(shop: Workshop, entry: str, seeds: Sequence[int], rates: Rates) -> dict[str, Any]:
    """Return what a row started from, and the content hash of that model for each seed."""
    title = STARTS[ARMS[entry].start].title if entry in ARMS and ARMS[entry].start != BASE else "base"
    hashes: dict[str, str] = {}
    for seed in seeds:
        manifest = shop.run_folder(shop.job(entry, seed, rates)) / "manifest.json"
        if manifest.is_file():
            hashes[str(seed)] = read_json(manifest)["model"]["digest"][:12]
    return {"title": title, "hashes": hashes}
