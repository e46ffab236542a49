"""What happens around the loop: logged rows on disk, and what saves and stops: a signal, a refresh that is due."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from cwdpo.errors import RunError
from cwdpo.files import append_jsonl, read_json, read_jsonl, text_digest, write_json, write_jsonl
from cwdpo.processes import processes
from cwdpo.recipe import RefreshSection

__all__ = ["MetricsFile", "RefreshMoment", "RowsKnown", "StopOnSignal", "is_due", "trim_rows"]


def trim_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the rows of a JSON-lines file beyond `step`: a killed run got further than its checkpoint."""
    if not path.is_file():
        return []
    rows = [row for row in read_jsonl(path) if row["step"] <= step]
    write_jsonl(path, rows)
    return rows


class RowsKnown(TrainerCallback):
    """Keeps in every checkpoint what the rows of a folder's JSON-lines files were when it was saved.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep size and digest of every such file."""
        if state.is_world_process_zero:
            files = {path.name: path.read_bytes() for path in sorted(self.folder.glob("*.jsonl"))}
            known = {name: {"bytes": len(rows), "sha256": text_digest(rows)} for name, rows in files.items()}
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _ROWS, known)

    def require_unchanged(self, checkpoint: Path) -> None:
        """Compare the rows that a resumed run builds on.

        Raises:
            RunError: Some were changed or damaged.
        """
        if not (checkpoint / _ROWS).is_file():
            return
        for name, known in read_json(checkpoint / _ROWS).items():
            path = self.folder / name
            rows = path.read_bytes()[: known["bytes"]] if path.is_file() else b""
            if text_digest(rows) != known["sha256"]:
                raise RunError(
                    f"{path}: rows of it were changed or damaged since this run wrote them; put it back, or move "
                    f"{self.folder} away to have that step done again"
                )


_ROWS = "rows.json"


class MetricsFile(TrainerCallback):
    """Writes every logged row to a JSON-lines file, once per step even across kills.

    Times are left out (`speed/…`, and the summary at the end of `train()`): they belong to one call, not to the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trimmed = False

    def _trim(self, state: Any) -> None:
        if state.is_world_process_zero and not self._trimmed:
            trim_rows(self.path, state.global_step if state.global_step else -1)
        self._trimmed = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop rows beyond the checkpoint that training resumes from."""
        self._trim(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Append the row. Another callback may log before this one's `on_train_begin`."""
        self._trim(state)
        timed = logs and any(name == "train_runtime" or name.startswith("speed/") for name in logs)
        if state.is_world_process_zero and logs and not timed:
            append_jsonl(self.path, {"step": state.global_step, **logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare for another run."""
        self._trimmed = False


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the update under way, save a checkpoint, stop."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)

    def release(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def agree(self) -> None:
        """Treat a signal that came to any process as this one's."""
        self.received = processes().largest(self.received or 0) or None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after the update in which a signal came."""
        self.agree()
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the previous handlers."""
        self.release()


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
