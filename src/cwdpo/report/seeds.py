"""Several seeds of one recipe as one run: means, what they span, and intervals over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from cwdpo.evaluation.intervals import mean_interval
from cwdpo.report.run_record import RunRecord, StageRecord, as_list, as_map, number

__all__ = ["pool_seeds"]

_PLACES = {"path", "held_out_path", "image_root"}
"""Keys of `data` and `probes` that may differ between seeds: each may have drawn its own data."""


def pool_seeds(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Put runs together that share name and recipe but for the seed; the others stay as they are, in their order."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_seedless(run.recipe), sort_keys=True, default=str), []).append(run)
    found: list[RunRecord] = []
    for group in groups.values():
        several = len(group) > 1 and len({run.seed for run in group}) == len(group)
        found += [_pooled(sorted(group, key=lambda run: run.seed or 0))] if several else group
    return found


def _seedless(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without its seeds, and without the places of data that a seed may have of its own."""
    kept = as_map(_without_seeds(recipe))
    for section in ("data", "probes"):
        kept[section] = {k: v for k, v in as_map(kept.get(section)).items() if k not in _PLACES}
    return kept


def _without_seeds(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {str(k): _without_seeds(v) for k, v in as_map(value).items() if not str(k).endswith("seed")}


def _pooled(runs: list[RunRecord]) -> RunRecord:
    first = runs[0]
    run = RunRecord(first.folder, first.name, first.recipe, seeds=runs)
    for name in ("manifest", "summary", "data", "negatives", "tallies"):
        setattr(run, name, _mean([getattr(one, name) for one in runs]))
    run.troubles = [f"seed {one.seed}: {trouble}" for one in runs for trouble in one.troubles]
    for when in ("before", "after"):
        gaps = [gap for one in runs if (gap := one.measure(when, "grounding")) is not None]
        if gaps:
            mean, low, high = mean_interval(gaps)
            run.section(when)["grounding"] = {"gap": mean, "low": low, "high": high}
    for name in ("stage1", "stage2"):
        stages = [one.stages[name] for one in runs if name in one.stages]
        if stages:
            run.stages[name] = _pooled_stage(stages)
    return run


def _pooled_stage(stages: list[StageRecord]) -> StageRecord:
    """Return the mean of a stage at the updates that all seeds have; what is of one prompt is the first seed's."""
    first = stages[0]
    done = _mean([s.done for s in stages]) if all(s.done for s in stages) else {}
    found = StageRecord(first.name, first.title, first.settings, [], [], done)
    found.probes = _mean_rows([s.probes for s in stages])
    found.metrics = _mean_rows([s.metrics for s in stages])
    found.tokens, found.seeds = first.tokens, stages
    return found


def _mean_rows(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    by_step = [{number(row.get("step")): row for row in table} for table in tables]
    shared = set(by_step[0]).intersection(*by_step[1:])
    return [as_map(_mean([table[step] for table in by_step])) for step in by_step[0] if step in shared]


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of values of the same form, number by number; None where what is no number differs."""
    known = [v for v in values if v is not None]
    if known and all(isinstance(v, dict) for v in known):
        maps = [as_map(v) for v in known]
        return {key: _mean([m.get(key) for m in maps]) for key in _keys(maps)}
    if known and all(isinstance(v, list) for v in known):
        if len({len(as_list(v)) for v in known}) > 1:
            return None
        lists = [as_list(v) for v in known]
        return _bins(lists) or [_mean(column) for column in zip(*lists, strict=True)]
    numbers = [number(v) for v in known]
    if known and all(n is not None for n in numbers):
        return statistics.fmean(cast("list[float]", numbers))
    return known[0] if known and all(v == known[0] for v in known) else None


def _keys(maps: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    return dict.fromkeys(key for m in maps for key in m)


def _bins(tables: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Add up reliability diagrams, each bin weighted by its predictions; nothing where these are none."""
    if not all("confidence" in as_map(b) and "count" in as_map(b) for table in tables for b in table):
        return []
    found: list[dict[str, Any]] = []
    for bins in zip(*tables, strict=True):
        counts = [number(b["count"]) or 0.0 for b in bins]
        row: dict[str, Any] = {**bins[0], "count": sum(counts)}
        for key in ("confidence", "accuracy"):
            known = [(n, v) for b, n in zip(bins, counts, strict=True) if n and (v := number(b.get(key))) is not None]
            row[key] = sum(n * v for n, v in known) / sum(n for n, _ in known) if known else None
        found.append(row)
    return found
