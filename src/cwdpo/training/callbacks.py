"""What happens around the loop: rows on disk, probes, a stop that saves."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor
from transformers import TrainerCallback

from cwdpo.dynamics.probes import ProbeSet
from cwdpo.errors import NonFiniteError
from cwdpo.files import append_jsonl, read_json, read_jsonl, write_bytes, write_json, write_jsonl
from cwdpo.scoring.reference import Scorer

__all__ = ["MetricsFile", "ProbeCallback", "StopOnSignal", "trim_rows"]


def trim_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the rows of a JSON-lines file that lie beyond `step` (a killed run got further than its checkpoint)."""
    if not path.is_file():
        return []
    rows = [row for row in read_jsonl(path) if row["step"] <= step]
    write_jsonl(path, rows)
    return rows


class MetricsFile(TrainerCallback):
    """Writes every logged row to a JSON-lines file, once per step even across kills.

    The summary at the end of `train()` is left out: its times and its mean loss are of one call, not of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trimmed = False

    def _trim(self, state: Any) -> None:
        if state.is_world_process_zero and not self._trimmed:
            trim_rows(self.path, state.global_step if state.global_step else -1)
        self._trimmed = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget rows beyond the checkpoint that training resumes from."""
        self._trim(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Append the row. Another callback may log before this one is told that training begins."""
        self._trim(state)
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            append_jsonl(self.path, {"step": state.global_step, **logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Be ready for another run."""
        self._trimmed = False


class ProbeCallback(TrainerCallback):
    """Measures a probe set at the start, every `every` updates and at the end, into `probes.jsonl`.

    Args:
        probes: What is measured.
        scorer: How.
        folder: Where `probes.jsonl` and the start's state are kept.
        every: Updates between readings.
        distributions: Keep the start's token distributions, for TV and JS.
    """

    def __init__(
        self, probes: ProbeSet, scorer: Scorer, folder: Path, *, every: int, distributions: bool = True
    ) -> None:
        self.probes, self.scorer, self.folder = probes, scorer, folder
        self.every, self.distributions = every, distributions
        self.rows: list[dict[str, Any]] = []
        self._start: Tensor | None = None
        self._trainer: Any = None

    @property
    def path(self) -> Path:
        """The readings."""
        return self.folder / "probes.jsonl"

    def attach(self, trainer: Any) -> None:
        """Report scalars through this trainer's `log` (and so to its `report_to` back ends)."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read the start of the stage, or take it up again."""
        start_file, start_json = self.folder / "probe_start.safetensors", self.folder / "probe_start.json"
        resumed = state.global_step > 0 and start_json.is_file() and self.path.is_file()
        if resumed and read_json(start_json)["digest"] == self.probes.digest:
            self.rows = trim_rows(self.path, state.global_step)
            self._start = load_file(start_file)["log_probs"] if start_file.is_file() else None
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.rows = []
        reading, self._start = self.probes.read(model, self.scorer, keep=self.distributions)
        if self._start is not None:
            write_bytes(start_file, save({"log_probs": self._start}))
            reading |= {"tv": 0.0, "js": 0.0}
        write_json(start_json, {"digest": self.probes.digest})
        self._keep(state, reading)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read when it is time."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            try:
                reading, _ = self.probes.read(model, self.scorer, start=self._start)
            except NonFiniteError as error:
                raise NonFiniteError(f"after update {state.global_step}: {error}") from None
            self._keep(state, reading)

    def _keep(self, state: Any, reading: dict[str, Any]) -> None:
        first, last = (self.rows[0], self.rows[-1]) if self.rows else (None, None)
        for kind, values in reading["kinds"].items():
            for name, other in (("delta_start", first), ("delta_last", last)):
                before = other["kinds"][kind]["logp_mean"] if other is not None else values["logp_mean"]
                values[name] = values["logp_mean"] - before
        row = {"step": state.global_step, **reading}
        self.rows.append(row)
        if state.is_world_process_zero:
            append_jsonl(self.path, row)
        if self._trainer is not None:
            due = self._trainer.control.should_log  # `log` takes the row of this update as written
            self._trainer.log(probe_scalars(row))
            self._trainer.control.should_log = due


def probe_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a reading under the names that trackers show."""
    names = ("logp_mean", "delta_start", "delta_last", "entropy", "top1", "cooling_weight")
    flat = {f"probe/{name}/{kind}": values[name] for kind, values in row["kinds"].items() for name in names}
    return flat | {f"probe/{name}": row[name] for name in ("ece", "entropy", "top1", "tv", "js") if name in row}


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
        """Take over the two signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after the update in which a signal came."""
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the signals back."""
        self.release()
