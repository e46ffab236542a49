"""Several seeds of one recipe as one run: means, what they span, and intervals over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, cast

from cwdpo.evaluation.intervals import mean_interval
from cwdpo.report.run_record import RunRecord
from cwdpo.report.values import as_list, as_map, number

__all__ = ["pool_seeds"]

_PLACES = {"path", "held_out_path", "image_root"}
"""Keys of `data` and `probes` that may differ between seeds: each may have drawn its own data."""


def pool_seeds(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Put runs together that share name and recipe but for the seed; the others stay as they are, in their order."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_seedless(run.recipe), sort_keys=True, default=str), []).append(run)
    pooled: list[RunRecord] = []
    for group in groups.values():
        several = len(group) > 1 and len({run.seed for run in group}) == len(group)
        pooled += [_pooled(sorted(group, key=lambda run: run.seed or 0))] if several else group
    return pooled


def _seedless(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without its seeds, and without the places of data that a seed may have of its own."""
    shared = as_map(_without_seeds(recipe))
    for section in ("data", "probes"):
        shared[section] = {k: v for k, v in as_map(shared, section).items() if k not in _PLACES}
    return shared


def _without_seeds(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {str(k): _without_seeds(v) for k, v in as_map(value).items() if not str(k).endswith("seed")}


def _pooled(runs: list[RunRecord]) -> RunRecord:
    """Return the mean of several seeds; what is of one prompt is the first seed's."""
    run = RunRecord(runs[0].folder, runs[0].recipe, seeds=runs)
    for name in dict.fromkeys(name for one in runs for name in one.files):
        if name.endswith(("probes.jsonl", "metrics.jsonl")):
            run.files[name] = _mean_rows([one.rows(name) for one in runs if name in one.files])
        elif name.endswith("probe_tokens.json"):
            run.files[name] = runs[0].json(name)
        elif not name.endswith(".jsonl") and (all(one.json(name) for one in runs) or not name.endswith("done.json")):
            run.files[name] = _mean([one.files.get(name) for one in runs])
    run.troubles = [f"seed {one.seed}: {trouble}" for one in runs for trouble in one.troubles]
    for when in ("before", "after"):
        gaps = [gap for one in runs if (gap := one.measure(when, "grounding")) is not None]
        if gaps:
            mean, low, high = mean_interval(gaps)
            as_map(run.summary, when)["grounding"] = {"gap": mean, "low": low, "high": high}
    return run


def _mean_rows(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the mean rows at the updates that all tables have."""
    by_step = [{number(row, "step"): row for row in table} for table in tables]
    shared = set(by_step[0]).intersection(*by_step[1:])
    return [as_map(_mean([table[step] for table in by_step])) for step in by_step[0] if step in shared]


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of values of the same form, number by number; None where what is no number differs."""
    known = [v for v in values if v is not None]
    if known and all(isinstance(v, dict) for v in known):
        keys = dict.fromkeys(key for v in known for key in as_map(v))
        return {key: _mean([as_map(v).get(key) for v in known]) for key in keys}
    if known and all(isinstance(v, list) for v in known):
        if len({len(as_list(v)) for v in known}) > 1:
            return None
        lists = [as_list(v) for v in known]
        return _bins(lists) or [_mean(column) for column in zip(*lists, strict=True)]
    numbers = [number(v) for v in known]
    if known and all(n is not None for n in numbers):
        return statistics.fmean(cast("list[float]", numbers))
    return known[0] if known and all(v == known[0] for v in known) else None


def _bins(tables: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Add up reliability diagrams, each bin weighted by its predictions; nothing where these are none."""
    if not all("confidence" in as_map(b) and "count" in as_map(b) for table in tables for b in table):
        return []
    summed: list[dict[str, Any]] = []
    for bins in zip(*tables, strict=True):
        counts = [number(b, "count") or 0.0 for b in bins]
        row: dict[str, Any] = {**bins[0], "count": sum(counts)}
        for key in ("confidence", "accuracy"):
            known = [(n, v) for b, n in zip(bins, counts, strict=True) if n and (v := number(b, key)) is not None]
            row[key] = sum(n * v for n, v in known) / sum(n for n, _ in known) if known else None
        summed.append(row)
    return summed
