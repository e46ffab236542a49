"""What the diagnosis found, and what early stopping decided, as verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cwdpo.report.page_blocks import Block, run_style
from cwdpo.report.run_record import STAGES, RunRecord
from cwdpo.report.ticks import text_of
from cwdpo.report.values import as_list, as_map, number

__all__ = ["findings_blocks"]

_RANK = {"serious": 0, "warning": 1, "note": 2}


@dataclass
class ShownFinding:
    """One finding, of one run or of several seeds of it.

    Attributes:
        name: The rule, as words.
        severity: `serious`, `warning` or `note`.
        where: Stage and update.
        sentence: What happens.
        remedy: What to change in the recipe.
        evidence: (name of a figure, value).
        seeds: The seeds that it was found in, where a run is several.
    """

    name: str
    severity: str
    where: str
    sentence: str
    remedy: str
    evidence: list[tuple[str, str]]
    seeds: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Findings:
    """A run's findings, the most serious first, and what there is to say besides."""

    run: str
    style: str
    findings: Sequence[ShownFinding]
    remarks: Sequence[str]
    kind: ClassVar[str] = "findings"


def findings_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return what the diagnosis of every run says; runs without one are left out."""
    return [findings for i, run in enumerate(runs) if (findings := _of_run(i, run)) is not None]


def _of_run(index: int, run: RunRecord) -> Findings | None:
    shown: dict[tuple[str, str], ShownFinding] = {}
    quiet: dict[str, list[int]] = {}
    remarks: list[str] = []
    for one in run.each:
        for stage in reversed(STAGES):
            diagnosis, stop = one.json(f"{stage}/diagnosis.json"), one.json(f"{stage}/early_stop.json")
            if not diagnosis:
                continue
            rows = [as_map(row) for row in as_list(diagnosis.get("findings"))]
            for row in rows:
                finding = shown.setdefault((stage, str(row.get("rule"))), _finding(stage, row))
                finding.seeds += [str(one.seed)] if run.seeds else []
            if not rows:
                quiet.setdefault(stage, []).append(int(number(diagnosis, "readings") or 0))
            if stop:
                remarks.append(_stopped(stage, stop, f"seed {one.seed}: " if run.seeds else ""))
    if quiet:
        remarks.append(f"No rule found anything in {' and '.join(_quiet(run, *item) for item in quiet.items())}.")
    order = sorted(shown.values(), key=lambda f: _RANK[f.severity])
    return Findings(run.label, run_style(index), order, remarks) if order or remarks else None


def _quiet(run: RunRecord, stage: str, readings: Sequence[int]) -> str:
    where = f"{len(readings)} of {len(run.seeds)} seeds, " if run.seeds else ""
    return f"{STAGES[stage]} ({where}{readings[0]} reading{'s' if readings[0] != 1 else ''} of the probes)"


def _finding(stage: str, row: dict[str, Any]) -> ShownFinding:
    step, severity = number(row, "step"), str(row.get("severity"))
    since = "" if step is None else (", from the start" if step == 0 else f", since update {int(step)}")
    figures = [(_words(str(k)), number(v)) for k, v in as_map(row, "figures").items()]
    return ShownFinding(
        name=str(row.get("rule", "?")).replace("_", " ").capitalize(),
        severity=severity if severity in _RANK else "note",
        where=f"{STAGES[stage]}{since}",
        sentence=str(row.get("sentence", "")),
        remedy=str(row.get("remedy", "")),
        evidence=[(name, text_of(value)) for name, value in figures if value is not None],
    )


def _words(name: str) -> str:
    """Return the name of a piece of evidence in words."""
    spelled = {"ece": "ECE", "top1": "top-1", "tv": "TV", "nll": "NLL"}
    return " ".join(spelled.get(word, word) for word in name.split("_"))


def _stopped(stage: str, row: dict[str, Any], who: str) -> str:
    best, last = number(row, "best_step"), number(row, "last_step")
    steps = f"was best at update {int(best)}" if best is not None else "had a best reading"
    until = f" of {int(last)} made" if last is not None else ""
    then = "; the stage ends with that model" if row.get("restored") is True else ""
    how = "stopped early" if row.get("stopped") is True else "not stopped early"
    return f"{who}{STAGES[stage]}: {how}. The signal `{row.get('signal', '?')}` {steps}{until}{then}."
