"""Stops a stage when its on-policy negatives are due to be refreshed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from cwdpo.recipe import RefreshSection

__all__ = ["RefreshMoment", "is_due"]

_WEIGHT = "cooling/weight"
"""Key of the training pairs' mean w_c in the logged rows."""


def is_due(
    settings: RefreshSection, *, step: int, updates: int, last: int, history: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether negatives are to be refreshed after an update; depends on the arguments alone.

    Args:
        settings: When.
        step: Updates made.
        updates: Updates of the stage.
        last: Updates made at the last refresh, 0 without one.
        history: Rows logged so far.
    """
    if not last < step < updates:
        return False
    if settings.every is not None and step - last >= settings.every:
        return True
    if settings.below is None or step - last < settings.wait:
        return False
    row = next((row for row in reversed(history) if _WEIGHT in row), None)
    return row is not None and row["step"] == step and row[_WEIGHT] < settings.below


class RefreshMoment(TrainerCallback):
    """Saves a checkpoint and stops when a refresh is due. Put it behind callbacks that may stop for good.

    Args:
        settings: When.
        last: Updates made at the last refresh.
    """

    def __init__(self, settings: RefreshSection, last: int) -> None:
        self._settings, self._last = settings, last
        self.due = False

    def _check(self, state: Any, control: Any) -> None:
        if control.should_training_stop:
            return
        facts = {"step": state.global_step, "updates": state.max_steps, "history": state.log_history}
        if is_due(self._settings, last=self._last, **facts):
            self.due = control.should_save = control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the number of updates."""
        self._check(state, control)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check mean w_c."""
        self._check(state, control)
