"""What a run was made with: recipes and how they differ, machines and versions, counts, times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from cwdpo.report.page_blocks import Block, Cell, Table, run_style
from cwdpo.report.run_record import RunRecord, as_list, as_map, number

__all__ = ["Listing", "counts_table", "environment_table", "recipe_blocks", "speed_table"]


@dataclass(frozen=True)
class Listing:
    """A text that opens on demand."""

    title: str
    text: str
    kind: ClassVar[str] = "listing"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(as_map(value), f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _plain(value)
    return found


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _heading(runs: Sequence[RunRecord], first: str) -> list[Cell]:
    return [Cell(first)] + [Cell(run.label, f"run {run_style(i)}") for i, run in enumerate(runs)]


def recipe_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return the differences between recipes as a table, then each recipe in full."""
    blocks: list[Block] = []
    if len(runs) > 1:
        flats = [_flat(run.recipe) for run in runs]
        keys = list(dict.fromkeys(k for flat in flats for k in flat))
        different = [k for k in keys if len({flat.get(k) for flat in flats}) > 1]
        rows = [[Cell(k, "code")] + [Cell(flat.get(k, "–"), "text") for flat in flats] for k in different]
        text = "Everything else is the same in all recipes." if rows else "The recipes are the same."
        blocks.append(Table("Where the recipes differ", text, _heading(runs, "key") if rows else [], rows))
    for run in runs:
        full = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
        which = f", seed {run.seeds[0].seed}" if run.seeds else ""
        blocks.append(Listing(f"Recipe of {run.label}{which}", full))
    return blocks


def counts_table(runs: Sequence[RunRecord]) -> Block:
    """Return how many prompts and negatives each stage had, what it did, and how long it took."""
    rows: list[list[Cell]] = []

    def add(name: str, values: Sequence[str]) -> None:
        if any(values):
            rows.append([Cell(name)] + [Cell(v or "–", "text") for v in values])

    for part, name in (
        ("stage1", "prompts, Stage 1"),
        ("stage2", "prompts, Stage 2"),
        ("held_out", "prompts, held out"),
    ):
        add(name, [_count(as_map(r.data.get("counts")).get(part)) for r in runs])
    add("rows set aside", [_count(r.data.get("bad_rows")) for r in runs])
    for stage, name in (("stage1", "Stage 1"), ("stage2", "Stage 2")):
        sources = [r.negatives.get(stage, {}) for r in runs]
        add(f"negatives, {name}", [", ".join(f"{_count(n)} {k}" for k, n in s.items()) for s in sources])
        done = [r.stages[stage].done if stage in r.stages else {} for r in runs]
        state = [_state(r, stage) for r in runs]
        add(f"{name}", [f"{r.objective(stage)}: {s}" if s else "" for r, s in zip(runs, state, strict=True)])
        add(f"updates, {name}", [_count(d.get("updates")) for d in done])
        add(f"training time, {name}", [_seconds(number(d.get("seconds"))) for d in done])
        add(f"model after {name}", [_digest(d.get("model")) for d in done])
    add("evaluated prompts", [_count(r.summary.get("prompts")) for r in runs])
    return Table("Data, negatives, time", "Hashes name the content of the weights.", _heading(runs, ""), rows)


def _state(run: RunRecord, stage: str) -> str:
    if not run.enabled(stage):
        return "left out by the recipe"
    if stage not in run.stages:
        return "not begun"
    return "done" if run.stages[stage].done else "under way"


def speed_table(runs: Sequence[RunRecord]) -> Block | None:
    """Return how fast each stage trained, and on what; None where nothing was measured."""
    rows: list[list[Cell]] = []
    for stage, name in (("stage1", "Stage 1"), ("stage2", "Stage 2")):
        speeds = [_speed(r, stage) for r in runs]
        keys = dict.fromkeys(k for speed in speeds for k in speed)
        rows += [[Cell(f"{name}: {k}"), *(Cell(speed.get(k, "–"), "text") for speed in speeds)] for k in keys]
    if not rows:
        return None
    text = (
        "Over all updates but the first, without evaluation and checkpoints. Tokens count every response with its "
        "prompt; waiting for data is part of the training time, the probes come on top of it."
    )
    return Table("Speed", text, _heading(runs, ""), rows)


def _speed(run: RunRecord, stage: str) -> dict[str, str]:
    """Return the figures of a stage over all calls that it took, and over all seeds."""
    stages = [one.stages[stage] for one in run.each if stage in one.stages]
    calls = [as_map(call) for found in stages for call in as_list(found.speed.get("calls"))]
    seconds = sum(number(call.get("seconds")) or 0.0 for call in calls)
    if not calls or seconds <= 0:
        return {}

    def total(key: str) -> float:
        return sum(number(call.get(key)) or 0.0 for call in calls)

    probing, peak = total("probing"), max(number(c.get("speed/peak_memory_gib")) or 0.0 for c in calls)
    mfu = [m for call in calls if (m := number(call.get("speed/mfu"))) is not None]
    found = {
        "device": ", ".join(dict.fromkeys(str(call.get("device", "?")) for call in calls)),
        f"{calls[-1].get('unit', 'examples')} per second": f"{total('examples') / seconds:.3g}",
        "tokens per second": _count(total("tokens") / seconds),
        "waiting for data": f"{total('waiting') / seconds:.1%}",
        "probes": f"{_seconds(probing / len(stages))} ({probing / (probing + seconds):.1%})",
    }
    found |= {"peak memory": f"{peak:.2f} GiB"} if peak else {}
    return found | ({"MFU": f"{mfu[-1]:.1%}"} if mfu else {})


def environment_table(runs: Sequence[RunRecord]) -> Block:
    """Return versions, machine and starting model of each run."""
    rows: list[list[Cell]] = []
    machines = [as_map(r.manifest.get("machine")) for r in runs]
    values: dict[str, list[str]] = {
        "folder": [", ".join(str(one.folder) for one in r.each) for r in runs],
        "name": [r.name for r in runs],
        "seed": [", ".join("–" if one.seed is None else str(one.seed) for one in r.each) for r in runs],
        "base model": [str(as_map(r.manifest.get("model")).get("path", "–")) for r in runs],
        "its hash": [_digest(as_map(r.manifest.get("model")).get("digest")) or "–" for r in runs],
        "cwdpo": [str(r.manifest.get("cwdpo", "–")) for r in runs],
        "Python": [str(r.manifest.get("python", "–")) for r in runs],
    }
    packages = [as_map(r.manifest.get("packages")) for r in runs]
    for name in dict.fromkeys(k for p in packages for k in p):
        values[name] = [str(p.get(name, "–")) for p in packages]
    values["platform"] = [str(m.get("platform", "–")) for m in machines]
    values["CPU cores (threads used)"] = [f"{m.get('cpus', '–')} ({m.get('threads', '–')})" for m in machines]
    values["GPUs"] = [", ".join(map(str, as_list(m.get("gpus")))) or "none" for m in machines]
    for name, found in values.items():
        rows.append([Cell(name)] + [Cell(v, "text") for v in found])
    return Table("Environment", "", _heading(runs, ""), rows)


def _count(value: Any) -> str:
    found = number(value)
    return "" if found is None else f"{int(found):,}".replace(",", " ")


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
