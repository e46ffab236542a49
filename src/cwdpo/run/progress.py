"""Progress of a run: steps, notes, and figures while it trains."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import TrainerCallback

from cwdpo.errors import printable
from cwdpo.probes.figures import Figure
from cwdpo.training.callbacks.probe_callback import ProbeCallback

__all__ = ["Reporter", "Silent", "TrainingFigures", "TrainingWatch"]


class Reporter:
    """Receives the progress of a run. This one is silent; subclasses show what reaches `beside`."""

    def step(self, name: str, text: str) -> None:
        """Announce a step."""
        self.beside("", "step", name, printable(text))

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        self.beside("", "note", printable(text))

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far a step is."""
        self.beside("", "progress", printable(text), done, total)

    def training(self, figures: TrainingFigures | None) -> None:
        """Show a stage while it trains; None when it ends."""
        self.beside("", "training", figures)

    def beside(self, run: str, kind: str, *facts: Any) -> None:
        """Show what one of several runs at work says.

        Args:
            run: Its name; empty where one run speaks for itself.
            kind: `step`, `note`, `progress` or `training`: the method that was called.
            facts: Its arguments, plain text without control characters.
        """


Silent = Reporter
"""A reporter that shows nothing."""


@dataclass(frozen=True)
class TrainingFigures:
    """A stage while it trains, in plain values.

    Attributes:
        title: What is trained.
        step: Updates done.
        total: Updates in all.
        speed: Updates a second in this call; 0 where it is not known yet.
        logs: The last value of every figure that was logged.
        probe: The last reading of the probes.
        own: The user's figures in it.
        logged: Whether this update's loss has just been logged.
    """

    title: str
    step: int
    total: int
    speed: float
    logs: Mapping[str, float]
    probe: Mapping[str, Any] | None
    logged: bool
    own: Sequence[Figure] = ()


class TrainingWatch(TrainerCallback):
    """Passes the progress of a stage to a reporter."""

    def __init__(self, title: str, probes: ProbeCallback | None, reporter: Reporter) -> None:
        self._probes, self._reporter = probes, reporter
        own = probes.figures if probes is not None else ()
        self._last = TrainingFigures(title, 0, 1, 0.0, {}, None, logged=False, own=own)
        self._began, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began, self._first = time.monotonic(), state.global_step
        self._tell(state, {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Take in new figures."""
        self._tell(state, {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)})

    def close(self) -> None:
        """Signal the end, successful or not."""
        self._reporter.training(None)

    def _tell(self, state: Any, logs: Mapping[str, float]) -> None:
        seconds, done = time.monotonic() - self._began, state.global_step - self._first
        rows = self._probes.rows if self._probes is not None else []
        self._last = replace(
            self._last,
            step=state.global_step,
            total=max(state.max_steps, 1),
            speed=done / seconds if seconds > 0 and done > 0 else 0.0,
            logs={**self._last.logs, **logs},
            probe=rows[-1] if rows else None,
            logged="loss" in logs,
        )
        self._reporter.training(self._last)
