"""Diagnosis during training: rules over the rows so far, reported, written to disk, and acted on if asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from cwdpo.probes.diagnosis.rules import Finding, StageFacts, diagnose, write_diagnosis
from cwdpo.training.callbacks.probe_callback import ProbeCallback

__all__ = ["DiagnosisCallback"]


class DiagnosisCallback(TrainerCallback):
    """Runs the rules after every probe, into `diagnosis.json`. Works in any `transformers.Trainer`, also TRL's.

    Args:
        probes: The probes of this run; put them before this callback in the trainer's list.
        facts: What is trained; default plain DPO.
        folder: Where `diagnosis.json` goes; default beside the probes.
        action: `stop` ends training at a serious finding, after a checkpoint; `warn` only reports.
        say: Called with each finding once, when it first is a warning or worse.
    """

    def __init__(
        self,
        probes: ProbeCallback,
        facts: StageFacts | None = None,
        *,
        folder: Path | None = None,
        action: Literal["warn", "stop"] = "warn",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.probes, self.facts, self.action = probes, facts or StageFacts(), action
        self.path = (folder or probes.folder) / "diagnosis.json"
        self.findings: list[Finding] = []
        self.stopped_by: Finding | None = None
        self._say = say
        self._said: set[tuple[str, str]] = set()
        self._read = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare for a run; one that was stopped trains until the next reading."""
        self._read, self.stopped_by = len(self.probes.rows), None

    def _update(self, state: Any) -> None:
        rules, readings = [figure.rule for figure in self.probes.own], len(self.probes.rows)
        self.findings = diagnose(self.probes.rows, state.log_history, self.facts, rules)
        if not state.is_world_process_zero:
            return
        write_diagnosis(self.path, self.findings, facts=self.facts, readings=readings, step=state.global_step)
        for finding in self.findings:
            if finding.severity != "note" and (finding.rule, finding.severity) not in self._said:
                self._said.add((finding.rule, finding.severity))
                if self._say is not None:
                    self._say(finding.line)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Apply the rules to a new reading."""
        if len(self.probes.rows) == self._read:
            return
        self._read = len(self.probes.rows)
        self._update(state)
        self.stopped_by = next((f for f in self.findings if f.severity == "serious" and self.action == "stop"), None)
        if self.stopped_by is not None:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Apply the rules once more, with the last logged rows."""
        self._update(state)
