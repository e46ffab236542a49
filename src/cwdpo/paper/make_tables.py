"""A table or figure from its name: run what is missing, write what was found."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cwdpo.errors import RunError
from cwdpo.files import write_json
from cwdpo.paper.costs import cost_table
from cwdpo.paper.execute_runs import choose_rates, draw_pictures, execute, missing
from cwdpo.paper.paper_figures import draw_figure
from cwdpo.paper.paper_tables import COSTS, FIGURES, TABLES, Table
from cwdpo.paper.results import table_results
from cwdpo.paper.run_plan import Job, Workshop
from cwdpo.paper.table_files import write_costs, write_table
from cwdpo.run import Reporter

__all__ = ["reproduce", "reproduce_figure", "still_to_run"]


def reproduce(
    shop: Workshop,
    name: str,
    seeds: Sequence[int],
    *,
    processes: int,
    reporter: Reporter,
    command: str,
    prepare: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Remake a table: run what is missing, write it, and return what was found.

    Args:
        shop: Where and at what size.
        name: Key of `TABLES`, or `COSTS`.
        seeds: One run each of every row.
        processes: Runs at once.
        reporter: Who is told.
        command: What the user asked, kept beside the figures.
        prepare: Called first in every process that is started.

    Raises:
        UserError: A run asks for something to be fixed; what is done is kept.
    """
    began = time.perf_counter()
    if name == COSTS:
        draw_pictures(shop, [0], reporter)
        result = cost_table(shop) | {"run": _facts(shop, [0], 1, command)}
        write_costs(result, shop.folder)
        return result
    table = TABLES[name]

    def make(jobs: Sequence[Job]) -> int:
        lacking = missing(shop, jobs)
        execute(shop, lacking, processes=processes, reporter=reporter, prepare=prepare)
        return len(lacking)

    made = make(shop.tuning_jobs(table.entries)) if table.tuned else 0
    rates = choose_rates(shop, table.entries) if table.tuned else {}
    made += make(_wanted(shop, table, seeds, rates))
    result = table_results(shop, table, seeds, rates)
    result["rates"] = rates
    result["run"] = _facts(shop, seeds, processes, command)
    result["run"] |= {"runs_of_this_call": made, "seconds_of_this_call": time.perf_counter() - began}
    write_table(result, shop.folder)
    return result


def still_to_run(shop: Workshop, name: str, seeds: Sequence[int]) -> list[Job]:
    """Return the runs that a table or figure lacks, those that choose learning rates among them."""
    if name == COSTS:
        return []
    if name in FIGURES:
        return missing(shop, [shop.job(entry, seed, {}) for seed in seeds for entry in FIGURES[name].entries])
    table = TABLES[name]
    tuning = shop.tuning_jobs(table.entries) if table.tuned else []
    rates = choose_rates(shop, table.entries) if table.tuned else {}
    return missing(shop, [*tuning, *_wanted(shop, table, seeds, rates)])


def _wanted(shop: Workshop, table: Table, seeds: Sequence[int], rates: dict[str, float]) -> list[Job]:
    """Return the runs behind a table, seed by seed: a table that is stopped has some seeds whole."""
    return [shop.job(entry, seed, rates) for seed in seeds for entry in table.entries]


def _facts(shop: Workshop, seeds: Sequence[int], processes: int, command: str) -> dict[str, Any]:
    return {
        "scale": f"scale {shop.scale.name}: {shop.scale.title}",
        "seeds": list(seeds),
        "rates": [f"{rate:g}" for rate in shop.scale.rates],
        "date": str(datetime.date.today()),
        "cpu": platform.machine(),
        "processes": processes,
        "torch": torch.__version__,
        "command": command,
    }


def reproduce_figure(
    shop: Workshop,
    name: str,
    seeds: Sequence[int],
    *,
    processes: int,
    command: str,
    reporter: Reporter,
    prepare: Callable[[], None] | None = None,
) -> tuple[Path, list[str]]:
    """Remake a figure from runs that are probed; return the file and what it shows, in words."""
    entries = FIGURES[name].entries
    jobs = [shop.job(entry, seed, {}) for seed in seeds for entry in entries]
    execute(shop, missing(shop, jobs), processes=processes, reporter=reporter, prepare=prepare)
    out = shop.folder / f"{name}.svg"
    folders = [shop.run_folder(job) for entry in entries for job in jobs if job.entry == entry]
    if not folders:
        raise RunError(f"{name}: needs at least one seed")
    notes = draw_figure(name, folders, out)
    found = {"runs": [str(f.relative_to(shop.place)) for f in folders], "shows": notes}
    write_json(shop.folder / f"{name}.json", found | {"run": _facts(shop, seeds, processes, command)})
    return out, notes
