"""What the diagnosis found, and what early stopping decided, as verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cwdpo.report.page_blocks import run_style
from cwdpo.report.run_record import RunRecord, as_list, as_map, number
from cwdpo.report.ticks import text_of

__all__ = ["Finding", "Findings", "findings_of"]

_RANK = {"serious": 0, "warning": 1, "note": 2}


@dataclass
class Finding:
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
    findings: Sequence[Finding]
    remarks: Sequence[str]
    kind: ClassVar[str] = "findings"


def findings_of(runs: Sequence[RunRecord]) -> list[Findings]:
    """Return what the diagnosis of every run says; runs without one are left out."""
    return [found for i, run in enumerate(runs) if (found := _of_run(i, run)) is not None]


def _of_run(index: int, run: RunRecord) -> Findings | None:
    found: dict[tuple[str, str], Finding] = {}
    quiet: dict[str, list[int]] = {}
    remarks: list[str] = []
    for one in run.each:
        for name in ("stage2", "stage1"):
            stage = one.stages.get(name)
            if stage is None or not stage.diagnosis:
                continue
            rows = [as_map(row) for row in as_list(stage.diagnosis.get("findings"))]
            for row in rows:
                key = (name, str(row.get("rule")))
                finding = found.setdefault(key, _finding(name, row))
                finding.seeds += [str(one.seed)] if run.seeds else []
            if not rows:
                quiet.setdefault(name, []).append(int(number(stage.diagnosis.get("readings")) or 0))
            if stage.early_stop:
                remarks.append(_stopped(name, stage.early_stop, f"seed {one.seed}: " if run.seeds else ""))
    if quiet:
        remarks.append(f"No rule found anything in {' and '.join(_quiet(run, *item) for item in quiet.items())}.")
    if not found and not remarks:
        return None
    order = sorted(found.values(), key=lambda f: _RANK.get(f.severity, 3))
    return Findings(run.label, run_style(index), order, remarks)


def _quiet(run: RunRecord, stage: str, readings: Sequence[int]) -> str:
    where = f"{len(readings)} of {len(run.seeds)} seeds, " if run.seeds else ""
    return f"{_STAGES[stage]} ({where}{readings[0]} reading{'s' if readings[0] != 1 else ''} of the probes)"


_STAGES = {"stage1": "Stage 1", "stage2": "Stage 2"}


def _finding(stage: str, row: dict[str, Any]) -> Finding:
    rule, step = str(row.get("rule", "?")), number(row.get("step"))
    severity = str(row.get("severity"))
    since = "" if step is None else (", from the start" if step == 0 else f", since update {int(step)}")
    figures = [(_words(str(k)), number(v)) for k, v in as_map(row.get("figures")).items()]
    return Finding(
        name=rule.replace("_", " ").capitalize(),
        severity=severity if severity in _RANK else "note",
        where=f"{_STAGES[stage]}{since}",
        sentence=str(row.get("sentence", "")),
        remedy=str(row.get("remedy", "")),
        evidence=[(name, text_of(value)) for name, value in figures if value is not None],
    )


def _words(name: str) -> str:
    """Return the name of a figure in words."""
    spelled = {"ece": "ECE", "top1": "top-1", "tv": "TV", "nll": "NLL"}
    return " ".join(spelled.get(word, word) for word in name.split("_"))


def _stopped(stage: str, row: dict[str, Any], who: str) -> str:
    signal, best, last = str(row.get("signal", "?")), number(row.get("best_step")), number(row.get("last_step"))
    steps = f"was best at update {int(best)}" if best is not None else "had a best reading"
    until = f" of {int(last)} made" if last is not None else ""
    then = "; the stage ends with that model" if row.get("restored") is True else ""
    how = "stopped early" if row.get("stopped") is True else "not stopped early"
    return f"{who}{_STAGES[stage]}: {how}. The signal `{signal}` {steps}{until}{then}."
