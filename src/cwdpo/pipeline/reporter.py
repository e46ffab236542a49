"""Who is told how a run goes on."""

from __future__ import annotations

from typing import Protocol

from transformers import TrainerCallback

from cwdpo.training.callbacks import ProbeCallback

__all__ = ["Reporter", "Silent"]


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

    def training(self, title: str, probes: ProbeCallback | None) -> list[TrainerCallback]:
        """Return callbacks that show a stage while it trains."""
        ...


class Silent:
    """Tells nobody."""

    def step(self, name: str, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Say nothing."""

    def training(self, title: str, probes: ProbeCallback | None) -> list[TrainerCallback]:
        """Show nothing."""
        return []
