"""The claims ledger as a page."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwdpo.files import write_json, write_text
from cwdpo.paper.arms import ARMS
from cwdpo.paper.execute_runs import choose_rates
from cwdpo.paper.run_plan import Workshop
from cwdpo.paper.sizes import Scale
from cwdpo.paper.table_files import rates_chosen

__all__ = ["write_ledger"]


def write_ledger(
    rows: Sequence[Mapping[str, Any]], shop: Workshop, seeds: Sequence[int], out: Path, command: str
) -> None:
    """Write the ledger as Markdown, and with every number as JSON beside it."""
    write_json(out.with_suffix(".json"), {"scale": shop.scale.name, "seeds": list(seeds), "claims": list(rows)})
    write_text(out, _page(rows, shop.scale, seeds, command, choose_rates(shop, ARMS)))


def _page(
    rows: Sequence[Mapping[str, Any]], scale: Scale, seeds: Sequence[int], command: str, rates: Mapping[str, float]
) -> str:
    counts = Counter(row["verdict"] for row in rows)
    tried = ", ".join(f"{rate:g}" for rate in scale.rates)
    lines = [
        "# Which of the paper's claims hold",
        "",
        f"Made by `{command}` on {datetime.date.today()} from the runs of `cwdpo paper` (scale `{scale.name}`: "
        f"{scale.title}; seeds {', '.join(map(str, seeds))}). Do not edit.",
        "",
        "An effect is the mean over seeds of a difference paired by seed, with its 95 % interval (Student's t). "
        "**holds**: the interval lies on the claimed side of zero for everything measured; **holds in part**: for some "
        "of it; **does not hold**: it lies on the other side, be it for one of the things that a claim says of each; "
        "**not shown**: it holds zero, or there are fewer than three seeds; **not run**: the runs are missing. "
        "What is found here is found on this model and these data: it says nothing of a 72B model on photographs. "
        "Intervals are not widened for the number of claims: of forty without any truth, some two would come out one "
        "way or the other by chance.",
        "",
        f"Where methods are compared (`tuned`), each had the same budget: the learning rates {tried} once each, on a "
        "seed of its own, and the one with most right captions was taken. Everywhere else all rows share one rate "
        f"({scale.rate:g}), as the paper's ablations do. {rates_chosen(rates, scale.rates) if rates else ''}".rstrip(),
        "",
        "; ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + ".",
        "",
        "| where | claim | verdict | measured | from |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        evidence = "<br>".join(_evidence(found) for found in row["evidence"])
        source = ", ".join(f"`{name}`" for name in row["source"])
        lines.append(f"| {row['where']} | {row['claim']} | **{row['verdict']}** | {evidence} | {source} |")
    lines += ["", "`from` names what to give `cwdpo paper` for the runs.", ""]
    return "\n".join(lines)


def _evidence(found: Mapping[str, Any]) -> str:
    tuned = ", tuned" if found.get("tuned") else ""
    claimed = f"; claimed {found['claimed']}{tuned}" if "claimed" in found else ""
    return f"{found['text']}{claimed}".replace("|", "\\|")
