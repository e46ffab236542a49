"""What `cwdpo benchmark RUN --suite` measured, as a table a run."""

from __future__ import annotations

from collections.abc import Sequence

from cwdpo.report.page_blocks import Absent, Block, Cell, Table
from cwdpo.report.run_record import STAGES, RunRecord
from cwdpo.report.ticks import signed, text_of, whole
from cwdpo.report.values import as_map, number

__all__ = ["benchmark_blocks"]

_TEXT = (
    "Accuracy in %, 95 % interval over questions below it; differences in points, on the same questions. Not readable: "
    "answers in which no option could be read, of each model."
)


def benchmark_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return a table for each run that was asked benchmarks."""
    found = [_table(run) for run in runs if as_map(run.json("benchmarks/summary.json"), "benchmarks")]
    return [*found] or [Absent("No benchmark was asked: `cwdpo benchmark RUN --suite hallucination --data DIR` does.")]


def _table(run: RunRecord) -> Table:
    summary = run.json("benchmarks/summary.json")
    models, parts = list(as_map(summary, "models")), as_map(summary, "benchmarks")
    pairs = list(dict.fromkeys(pair for part in parts.values() for pair in as_map(part, "paired")))
    header = ["benchmark", "questions", *(STAGES.get(m, m) for m in models), *pairs, "not readable"]
    body: list[list[Cell]] = []
    for name, part in parts.items():
        figures, paired = as_map(part, "models"), as_map(part, "paired")
        cells = [Cell(str(as_map(part).get("title", name)), "text"), Cell(whole(number(part, "questions")))]
        cells += [_cell(as_map(figures, m), "accuracy") for m in models]
        cells += [_cell(as_map(paired, p), "mean", plus=True) for p in pairs]
        unread = ", ".join(_percent(number(figures, m, "unreadable")) for m in models)
        body.append([*cells, Cell(unread, "text")])
    return Table(run.label, _TEXT, [Cell(text) for text in header], body)


def _percent(value: float | None) -> str:
    return "–" if value is None else text_of(100 * value, 1)


def _cell(row: dict[str, object], key: str, *, plus: bool = False) -> Cell:
    value, low, high = (number(row, name) for name in (key, "low", "high"))
    text = "–" if value is None else (signed if plus else text_of)(100 * value, 1)
    ends = "" if low is None or high is None else f"[{_percent(low)}, {_percent(high)}]"
    return Cell(text, more=ends)
