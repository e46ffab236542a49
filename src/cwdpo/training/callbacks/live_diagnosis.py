"""Diagnosis while training: rules over the rows so far, said aloud, written down, and acted on if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        action: `stop` ends training at a serious finding, after a checkpoint; `warn` only tells.
        say: Told each finding once, when it is first seen as a warning or worse.
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
        """Be ready for another run; one that was stopped goes on until the next reading."""
        self._read, self.stopped_by = len(self.probes.rows), None

    def _update(self, state: Any) -> None:
        history: list[Mapping[str, Any]] = state.log_history
        self.findings = diagnose(self.probes.rows, history, self.facts, [figure.rule for figure in self.probes.own])
        if not state.is_world_process_zero:
            return
        readings = len(self.probes.rows)
        write_diagnosis(self.path, self.findings, facts=self.facts, readings=readings, step=state.global_step)
        for finding in self.findings:
            if finding.severity != "note" and (finding.rule, finding.severity) not in self._said:
                self._said.add((finding.rule, finding.severity))
                if self._say is not None:
                    self._say(finding.line)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look again when there is a new reading."""
        if len(self.probes.rows) == self._read:
            return
        self._read = len(self.probes.rows)
        self._update(state)
        serious = [f for f in self.findings if f.severity == "serious"]
        if self.action == "stop" and serious:
            self.stopped_by = serious[0]
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look once more with the last logged rows."""
        self._update(state)
