"""What a run was made with: recipes and how they differ, counts, times, machines and versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from cwdpo.report.page_blocks import Block, Cell, Listing, Table, run_style
from cwdpo.report.run_record import STAGES, RunRecord
from cwdpo.report.ticks import whole
from cwdpo.report.values import as_list, as_map, number

__all__ = ["counts_table", "environment_table", "recipe_blocks", "speed_table"]


def _table(
    title: str, text: str, runs: Sequence[RunRecord], rows: Mapping[str, Sequence[str]], head: str = ""
) -> Table:
    """Return a table with a column a run; rows in which no run has anything are left out."""
    header = [Cell(head)] + [Cell(run.label, f"run {run_style(i)}") for i, run in enumerate(runs)]
    style = "code" if head == "key" else ""
    body = [[Cell(name, style), *(Cell(v or "–", "text") for v in row)] for name, row in rows.items() if any(row)]
    return Table(title, text, header if body else [], body)


def recipe_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return the differences between recipes as a table, then each recipe in full."""
    blocks: list[Block] = []
    if len(runs) > 1:
        flats = [_flat(run.recipe) for run in runs]
        rows = {k: [flat.get(k, "–") for flat in flats] for k in dict.fromkeys(k for flat in flats for k in flat)}
        different = {k: row for k, row in rows.items() if len(set(row)) > 1}
        text = "Everything else is the same in all recipes." if different else "The recipes are the same."
        blocks.append(_table("Where the recipes differ", text, runs, different, "key"))
    for run in runs:
        full = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
        which = f", seed {run.seeds[0].seed}" if run.seeds else ""
        blocks.append(Listing(f"Recipe of {run.label}{which}", full))
    return blocks


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(as_map(value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)
    return flat


def counts_table(runs: Sequence[RunRecord]) -> Block:
    """Return how many prompts and negatives each stage had, what it did, and how long it took."""

    def each(read: Callable[[RunRecord], str]) -> list[str]:
        return [read(run) for run in runs]

    rows: dict[str, list[str]] = {}
    for part, name in (*STAGES.items(), ("held_out", "held out")):
        rows[f"prompts, {name}"] = each(lambda r, p=part: _count(r.json("data/done.json"), "counts", p))
    rows["rows set aside"] = each(lambda r: _count(r.json("data/done.json"), "bad_rows"))
    for stage, name in STAGES.items():
        sources, done = f"negatives/{stage}/counts.json", f"{stage}/done.json"
        rows[f"negatives, {name}"] = each(lambda r, f=sources: _by_source(r.json(f)))
        rows[name] = each(lambda r, s=stage: _state(r, s))
        rows[f"updates, {name}"] = each(lambda r, f=done: _count(r.json(f), "updates"))
        rows[f"training time, {name}"] = each(lambda r, f=done: _seconds(number(r.json(f), "seconds")))
        rows[f"model after {name}"] = each(lambda r, f=done: _digest(r.json(f).get("model")))
    rows["evaluated prompts"] = each(lambda r: _count(r.summary, "prompts"))
    return _table("Data, negatives, time", "Hashes name the content of the weights.", runs, rows)


def _by_source(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{whole(number(n))} {source}" for source, n in counts.items())


def _state(run: RunRecord, stage: str) -> str:
    if not run.enabled(stage):
        state = "left out by the recipe"
    elif stage not in run.stages:
        state = "not begun"
    else:
        state = "done" if run.stages[stage].json("done.json") else "under way"
    return f"{run.objective(stage)}: {state}"


def speed_table(runs: Sequence[RunRecord]) -> list[Block]:
    """Return how fast each stage trained, and on what; nothing where nothing was measured."""
    rows: dict[str, list[str]] = {}
    for stage, name in STAGES.items():
        speeds = [_speed(r, stage) for r in runs]
        for key in dict.fromkeys(k for speed in speeds for k in speed):
            rows[f"{name}: {key}"] = [speed.get(key, "") for speed in speeds]
    text = (
        "Over all updates but the first, without evaluation and checkpoints. Tokens count every response with its "
        "prompt; waiting for data is part of the training time, the probes come on top of it."
    )
    return [_table("Speed", text, runs, rows)] if rows else []


def _speed(run: RunRecord, stage: str) -> dict[str, str]:
    """Return the figures of a stage over all calls that it took, and over all seeds."""
    files = [one.json(f"{stage}/throughput.json") for one in run.each]
    calls = [as_map(call) for file in files for call in as_list(file.get("calls"))]

    def total(key: str) -> float:
        return sum(number(call, key) or 0.0 for call in calls)

    seconds, probing = total("seconds"), total("probing")
    if seconds <= 0:
        return {}
    peak = max(number(c, "speed/peak_memory_gib") or 0.0 for c in calls)
    mfu = [m for call in calls if (m := number(call, "speed/mfu")) is not None]
    return {
        "device": ", ".join(dict.fromkeys(str(call.get("device", "?")) for call in calls)),
        f"{calls[-1].get('unit', 'examples')} per second": f"{total('examples') / seconds:.3g}",
        "tokens per second": whole(total("tokens") / seconds),
        "waiting for data": f"{total('waiting') / seconds:.1%}",
        "probes": f"{_seconds(probing / sum(map(bool, files)))} ({probing / (probing + seconds):.1%})",
        "peak memory": f"{peak:.2f} GiB" if peak else "",
        "MFU": f"{mfu[-1]:.1%}" if mfu else "",
    }


def environment_table(runs: Sequence[RunRecord]) -> Block:
    """Return versions, machine and starting model of each run."""
    manifests = [run.manifest for run in runs]
    machines, models = ([as_map(m, key) for m in manifests] for key in ("machine", "model"))
    rows: dict[str, list[str]] = {
        "folder": [", ".join(str(one.folder) for one in r.each) for r in runs],
        "name": [r.name for r in runs],
        "seed": [", ".join("–" if one.seed is None else str(one.seed) for one in r.each) for r in runs],
        "base model": [str(m.get("path", "")) for m in models],
        "its hash": [_digest(m.get("digest")) for m in models],
        "cwdpo": [str(m.get("cwdpo", "")) for m in manifests],
        "Python": [str(m.get("python", "")) for m in manifests],
    }
    packages = [as_map(m, "packages") for m in manifests]
    rows |= {name: [str(p.get(name, "")) for p in packages] for name in dict.fromkeys(k for p in packages for k in p)}
    rows["platform"] = [str(m.get("platform", "")) for m in machines]
    rows["CPU cores (threads used)"] = [f"{m.get('cpus', '–')} ({m.get('threads', '–')})" for m in machines]
    rows["GPUs"] = [", ".join(map(str, as_list(m.get("gpus")))) or "none" for m in machines]
    return _table("Environment", "", runs, rows)


def _count(value: Any, *path: str) -> str:
    return "" if (found := number(value, *path)) is None else whole(found)


def _digest(value: Any) -> str:
    return value[:12] if isinstance(value, str) else ""


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
