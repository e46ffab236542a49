"""Who is told how a run goes on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from transformers import TrainerCallback

from cwdpo.training.callbacks.loop_callbacks import ProbeCallback

__all__ = ["Reporter", "Silent", "Teller", "TrainingFigures", "TrainingWatch"]


class Reporter(Protocol):
    """Who is told how a run goes on."""

    def step(self, name: str, text: str) -> None:
        """Announce a step."""
        ...

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        ...

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far a step is."""
        ...

    def training(self, figures: TrainingFigures | None) -> None:
        """Show a stage while it trains; None when it ends."""
        ...

    def beside(self, run: str, kind: str, *facts: Any) -> None:
        """Show what one of several runs at work says.

        Args:
            run: Its name.
            kind: `step`, `note`, `progress` or `training`: the method that the run would have called.
            facts: Its arguments.
        """
        ...


class Teller(ABC):
    """A reporter that says everything in one way; a run that speaks for itself has no name."""

    def step(self, name: str, text: str) -> None:
        """Announce a step."""
        self.beside("", "step", name, text)

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        self.beside("", "note", text)

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far a step is."""
        self.beside("", "progress", text, done, total)

    def training(self, figures: TrainingFigures | None) -> None:
        """Show a stage while it trains; None when it ends."""
        self.beside("", "training", figures)

    @abstractmethod
    def beside(self, run: str, kind: str, *facts: Any) -> None:
        """Say something of a run. See `Reporter.beside`."""


class Silent(Teller):
    """Tells nobody."""

    def beside(self, run: str, kind: str, *facts: Any) -> None:
        """Say nothing."""


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
        logged: Whether this update's loss has just been logged.
    """

    title: str
    step: int
    total: int
    speed: float
    logs: Mapping[str, float]
    probe: Mapping[str, Any] | None
    logged: bool


class TrainingWatch(TrainerCallback):
    """Tells a reporter how a stage goes on."""

    def __init__(self, title: str, probes: ProbeCallback | None, reporter: Reporter) -> None:
        self._probes, self._reporter = probes, reporter
        self._last = TrainingFigures(title, 0, 1, 0.0, {}, None, logged=False)
        self._began, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began, self._first = time.monotonic(), state.global_step
        self._tell(state, {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Take up new figures."""
        self._tell(state, {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)})

    def close(self) -> None:
        """Say that it is over, well or not."""
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
