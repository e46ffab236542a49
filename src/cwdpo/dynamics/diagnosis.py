"""What goes wrong in a run, by name: rules over the rows that probes and trainer write.

Every rule is a pure function of the rows so far, so that the same words come live, at the end and from a run directory
read years later. A rule that lacks the rows it needs says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwdpo.dynamics import rules_metrics, rules_probes
from cwdpo.dynamics.stream import Finding, StageFacts, Stream
from cwdpo.files import write_json

__all__ = ["RULES", "Finding", "StageFacts", "diagnose", "write_diagnosis"]

Rule = Callable[[Stream, StageFacts], Finding | None]

RULES: tuple[Rule, ...] = (
    rules_metrics.reference_mismatch,
    rules_metrics.unstable_loss,
    rules_probes.diverging_likelihood,
    rules_probes.squeezing,
    rules_probes.likelihood_displacement,
    rules_probes.overconfidence,
    rules_probes.false_negatives,
    rules_probes.dead_negatives,
    rules_metrics.over_cooling,
    rules_metrics.penalty,
    rules_probes.length_drift,
    rules_probes.no_learning,
)
"""All rules; of two that find the same thing the first is kept."""

_RANK = {"serious": 0, "warning": 1, "note": 2}


def diagnose(
    probes: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]] = (),
    facts: StageFacts | None = None,
) -> list[Finding]:
    """Name what goes wrong in a stage.

    Args:
        probes: Rows of `probes.jsonl` so far; the first is the start of the stage.
        metrics: Logged rows so far (`metrics.jsonl`, or a trainer's `state.log_history`).
        facts: What the recipe asked for; default plain DPO.

    Returns:
        Findings, the most serious first; of one rule at most one.
    """
    stream = Stream(probes, metrics)
    found: dict[str, Finding] = {}
    for rule in RULES:
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
