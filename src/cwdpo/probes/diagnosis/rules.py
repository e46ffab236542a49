"""What goes wrong in a run, by name: rules over the rows that probes and trainer write.

Every rule is a pure function of the rows so far, so that the same words come live, at the end and from a run directory
read years later. A rule that lacks the rows it needs says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwdpo.files import write_json
from cwdpo.probes.diagnosis import metric_rules, probe_rules
from cwdpo.probes.diagnosis.stage_history import Finding, StageFacts, Stream

__all__ = ["RULES", "Finding", "StageFacts", "diagnose", "write_diagnosis"]

Rule = Callable[[Stream, StageFacts], Finding | None]

RULES: tuple[Rule, ...] = (
    metric_rules.reference_mismatch,
    metric_rules.unstable_loss,
    probe_rules.diverging_likelihood,
    probe_rules.squeezing,
    probe_rules.likelihood_displacement,
    probe_rules.overconfidence,
    probe_rules.false_negatives,
    probe_rules.dead_negatives,
    metric_rules.over_cooling,
    metric_rules.penalty,
    probe_rules.length_drift,
    probe_rules.no_learning,
)
"""All rules; of two that find the same thing the first is kept."""

_RANK = {"serious": 0, "warning": 1, "note": 2}


def diagnose(
    probes: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]] = (),
    facts: StageFacts | None = None,
    rules: Sequence[Rule] = (),
) -> list[Finding]:
    """Name what goes wrong in a stage, and what went wrong in it: a later good reading does not erase a finding.

    Args:
        probes: Rows of `probes.jsonl` so far; the first is the start of the stage.
        metrics: Logged rows so far (`metrics.jsonl`, or a trainer's `state.log_history`).
        facts: What the recipe asked for; default plain DPO.
        rules: Further rules, of figures of your own.

    Returns:
        Findings, the most serious first; of one rule at most one. What held at earlier readings only, as a warning or
        worse, is a note with the update since when it no longer holds.
    """
    every, known = (*RULES, *rules), facts or StageFacts()
    found = _found(Stream(probes, metrics), known, every)
    for end in range(len(probes) - 1, 1, -1):
        last, step = (int(row.get("step", 0)) for row in probes[end - 1 : end + 1])
        until_then = Stream(probes[:end], [row for row in metrics if int(row.get("step", 0)) <= last])
        for name, finding in _found(until_then, known, every).items():
            if name not in found and finding.severity != "note":
                found[name] = finding.ended(step)
    return sorted(found.values(), key=lambda f: _RANK[f.severity])


def _found(stream: Stream, facts: StageFacts, rules: Sequence[Rule]) -> dict[str, Finding]:
    """Return what holds at the last reading, by rule."""
    found: dict[str, Finding] = {}
    for rule in rules:
        if (finding := rule(stream, facts)) is not None:
            found.setdefault(finding.rule, finding)
    return found


def write_diagnosis(path: Path, findings: Sequence[Finding], *, facts: StageFacts, readings: int, step: int) -> None:
    """Write findings as `diagnosis.json`.

    Args:
        path: The file.
        findings: What was found.
        facts: Of the stage.
        readings: How many readings the rules saw.
        step: The last update they saw.
    """
    write_json(
        path,
        {
            "objective": facts.objective,
            "readings": readings,
            "step": step,
            "findings": [finding.to_json() for finding in findings],
        },
    )
