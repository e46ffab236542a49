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
    """Name what goes wrong in a stage.

    Args:
        probes: Rows of `probes.jsonl` so far; the first is the start of the stage.
        metrics: Logged rows so far (`metrics.jsonl`, or a trainer's `state.log_history`).
        facts: What the recipe asked for; default plain DPO.
        rules: Further rules, of figures of your own.

    Returns:
        Findings, the most serious first; of one rule at most one.
    """
    stream = Stream(probes, metrics)
    found: dict[str, Finding] = {}
    for rule in (*RULES, *rules):
        finding = rule(stream, facts or StageFacts())
        if finding is not None:
            found.setdefault(finding.rule, finding)
    return sorted(found.values(), key=lambda f: _RANK[f.severity])


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
