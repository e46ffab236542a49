"""What happens around the loop: rows on disk, probes, a stop that saves."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor
from transformers import TrainerCallback

from cwdpo.errors import NonFiniteError
from cwdpo.files import append_jsonl, read_json, write_bytes, write_json
from cwdpo.probes.reading import ProbeSet
from cwdpo.processes import processes
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.callbacks.probe_writer import PromptFile, TokenFile, trim_rows
from cwdpo.training.callbacks.throughput import Stopwatch

__all__ = ["MetricsFile", "ProbeCallback", "StopOnSignal", "trim_rows"]


class MetricsFile(TrainerCallback):
    """Writes every logged row to a JSON-lines file, once per step even across kills.

    Times are left out (`speed/…`, and the summary at the end of `train()` with its mean loss): they are of one call,
    not of the run.
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
        timed = logs and any(name == "train_runtime" or name.startswith("speed/") for name in logs)
        if state.is_world_process_zero and logs and not timed:
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
        tokens: Of so many prompts, keep the likeliest tokens at every place of the gold response.
        also: Further figures of the model, by name, for the row of a reading.
    """

    def __init__(
        self,
        probes: ProbeSet,
        scorer: Scorer,
        folder: Path,
        *,
        every: int,
        distributions: bool = True,
        tokens: int = 4,
        also: Callable[[Any], Mapping[str, float]] | None = None,
    ) -> None:
        self.probes, self.scorer, self.folder = probes, scorer, folder
        self.every, self.distributions, self.tokens = every, distributions, tokens
        self._also = also or (lambda _: {})
        self._prompt_file, self._token_file = PromptFile(folder), TokenFile(folder)
        self.rows: list[dict[str, Any]] = []
        self.watch = Stopwatch()
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
        if resumed and read_json(start_json, digest=str)["digest"] == self.probes.digest:
            self.rows = processes().lead(lambda: trim_rows(self.path, state.global_step))
            self._start = load_file(start_file)["log_probs"] if start_file.is_file() else None
            self._prompt_file.resume(state.global_step)
            self._token_file.resume()
            return
        write = bool(state.is_world_process_zero)
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
        self._prompt_file.begin(write=write)
        self._token_file.begin(write=write)
        self.rows = []
        with self.watch:
            reading, self._start = processes().each(
                lambda: self.probes.read(
                    model, self.scorer, keep=self.distributions, per_prompt=True, tokens=self.tokens
                )
            )
            reading |= self._also(model)
        if self._start is not None:
            reading |= {"tv": 0.0, "js": 0.0}
        if write:
            if self._start is not None:
                write_bytes(start_file, save({"log_probs": self._start}))
            write_json(start_json, {"digest": self.probes.digest})
        self._keep(state, reading)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read when it is time."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            with self.watch:
                reading, _ = processes().each(lambda: self._read(model, state))
                reading |= self._also(model)
            self._keep(state, reading)

    def _read(self, model: Any, state: Any) -> tuple[dict[str, Any], Tensor | None]:
        try:
            return self.probes.read(model, self.scorer, start=self._start, per_prompt=True, tokens=self.tokens)
        except NonFiniteError as error:
            raise NonFiniteError(f"after update {state.global_step}: {error}") from None

    def _keep(self, state: Any, reading: dict[str, Any]) -> None:
        write = bool(state.is_world_process_zero)
        reading = processes().lead(lambda: reading)  # what is decided on them is decided alike everywhere
        if self.tokens:
            self._token_file.keep(state.global_step, reading.pop("top_tokens"), write=write)
        facts = {"floor": self.probes.floor, "tau": self.probes.tau}
        errors = self._prompt_file.keep(state.global_step, reading.pop("prompts"), write=write, **facts)
        first, last = (self.rows[0], self.rows[-1]) if self.rows else (None, None)
        for kind, values in reading["kinds"].items():
            for name, other in (("delta_start", first), ("delta_last", last)):
                before = other["kinds"][kind]["logp_mean"] if other is not None else values["logp_mean"]
                values[name] = values["logp_mean"] - before
            if errors.get(kind) == errors.get(kind):
                values["delta_start_se"] = errors[kind]
        row = {"step": state.global_step, **reading}
        self.rows.append(row)
        if write:
            append_jsonl(self.path, row)
        if self._trainer is not None:
            due = self._trainer.control.should_log  # `log` takes the row of this update as written
            self._trainer.log(probe_scalars(row))
            self._trainer.control.should_log = due


_OVERALL = ("ece", "accuracy", "ranking", "entropy", "top1", "tv", "js", "answer_words", "cider_top5", "correct_top5")


def probe_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a reading under the names that trackers show."""
    names = ("logp_mean", "delta_start", "delta_last", "entropy", "top1", "argmax_logp", "cooling_weight")
    flat = {f"probe/{name}/{kind}": values[name] for kind, values in row["kinds"].items() for name in names}
    return flat | {f"probe/{name}": row[name] for name in _OVERALL if name in row}


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

    def agree(self) -> None:
        """Take a signal that came to any process for one's own."""
        self.received = processes().largest(self.received or 0) or None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after the update in which a signal came."""
        self.agree()
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the signals back."""
        self.release()
