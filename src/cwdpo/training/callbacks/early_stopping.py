"""Stops when a probe signal no longer improves, and restores the weights of the best reading."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cwdpo.data.schema import CHOSEN
from cwdpo.errors import RecipeError
from cwdpo.files import write_json
from cwdpo.models.fsdp import is_sharded, load_shards, shards_of
from cwdpo.models.loading import load_weights
from cwdpo.models.parts import base_model
from cwdpo.probes.figures import signals
from cwdpo.training.callbacks.probe_callback import ProbeCallback
from cwdpo.training.checkpoints import require_whole

__all__ = ["ProbeEarlyStopping", "Verdict", "follow", "restore_weights", "signal_value", "watch"]

logger = logging.getLogger(__name__)


class ProbeEarlyStopping(TrainerCallback):
    """Ends training when a signal of the probes has not improved for some readings. Works in any `Trainer`.

    Every improvement saves a checkpoint, which the trainer's rotation keeps; at the end the best one's weights are
    restored. Decisions depend on the readings alone, so a resumed run decides the same.

    Args:
        probes: The probes of this run; put them before this callback in the trainer's list.
        signal: A figure of the readings that has a direction: `cwdpo.probes.figures.signals`.
        patience: Readings without an improvement after which to stop.
        min_delta: By how much a reading must be better to count as an improvement.
        restore_best: Save a checkpoint at every improvement and end with the best one.
        stop: Whether to stop at all; without, training runs to its end and the best weights are put back.

    Raises:
        RecipeError: No such figure is read, or it has no direction.
    """

    def __init__(
        self,
        probes: ProbeCallback,
        signal: str = "accuracy",
        *,
        patience: int = 5,
        min_delta: float = 0.0,
        restore_best: bool = True,
        stop: bool = True,
    ) -> None:
        known = signals(probes.figures)
        if signal not in known:
            raise RecipeError(f"early stopping: signal {signal!r} is unknown; take one of {', '.join(known)}")
        self._higher = known[signal].better == "higher"
        self.probes, self.signal, self.patience, self.min_delta = probes, signal, patience, min_delta
        self.restore_best, self.stop = restore_best, stop
        self.verdict = Verdict(0, None)
        self.restored = False
        self._read = 0

    def _watch(self) -> Verdict:
        patience = self.patience if self.stop else len(self.probes.rows) + 1
        how: dict[str, Any] = {"higher": self._higher, "patience": patience, "min_delta": self.min_delta}
        return follow(self.probes.rows, self.signal, **how)

    def _best_folder(self, args: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{self.probes.rows[self.verdict.best]['step']}"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare for a run.

        Raises:
            RecipeError: The trainer's own `load_best_model_at_end` is on too.
        """
        if self.restore_best and args.load_best_model_at_end:
            raise RecipeError("early stopping on probes and load_best_model_at_end both choose weights; use one")
        self._read, self.restored, self.verdict = len(self.probes.rows), False, self._watch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the weights if a new reading is the best, stop if patience has run out."""
        if len(self.probes.rows) == self._read:
            return
        self._read = len(self.probes.rows)
        self.verdict = self._watch()
        if self.verdict.best == self._read - 1 and self.restore_best:
            state.best_metric = signal_value(self.probes.rows[-1], self.signal)
            state.best_global_step = state.global_step
            state.best_model_checkpoint = str(self._best_folder(args))  # rotation keeps it
            control.should_save = True
        if self.verdict.stop is not None:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Restore the best weights and write `early_stop.json`."""
        self.finish(model, args, write=bool(state.is_world_process_zero))

    def finish(self, model: Any, args: Any, *, write: bool = True) -> None:
        """Load the weights of the best reading into `model`, and write what was decided.

        Args:
            model: The model at the last reading.
            args: The trainer's arguments, for the folder of its checkpoints.
            write: Whether this process writes files.
        """
        self.verdict = self._watch()
        rows = self.probes.rows
        if not self.verdict.best:
            return
        best, folder = rows[self.verdict.best], self._best_folder(args)
        if self.restore_best and best["step"] < rows[-1]["step"] and folder.is_dir():
            self.restored = restore_weights(model, folder)
        if write:
            facts = {
                "signal": self.signal,
                "start": signal_value(rows[0], self.signal),
                "best": signal_value(best, self.signal),
                "best_step": best["step"],
                "last_step": rows[-1]["step"],
                "stopped": self.verdict.stop is not None,
                "restored": self.restored,
            }
            write_json(self.probes.folder / "early_stop.json", facts)


def restore_weights(model: Any, folder: Path) -> bool:
    """Load a checkpoint's weights (or adapters) in place; return whether that was possible.

    The model may be whole, or sharded by FSDP2 where the checkpoint was saved so.

    Raises:
        RunError: A file of the checkpoint was changed or damaged.
    """
    require_whole(folder)
    inner, shards = model, shards_of(folder)
    while hasattr(inner, "module"):
        inner = inner.module
    if is_sharded(model) and shards is None:
        logger.warning("%s: weights are sharded; they are left as they are, take the best ones from there", folder)
        return False
    with torch.no_grad():
        if shards is not None:
            load_shards(inner, shards)
        elif hasattr(inner, "peft_config"):
            _load_adapter(inner, folder)
        else:
            load_weights(base_model(inner), folder)
    return True


def _load_adapter(model: Any, folder: Path) -> None:
    """Put the active adapter's weights in place."""
    from peft import load_peft_weights, set_peft_model_state_dict

    active = model.active_adapter
    place = folder / active if (folder / active / "adapter_config.json").is_file() else folder
    weights = load_peft_weights(str(place), device=str(next(model.parameters()).device))
    set_peft_model_state_dict(model, weights, adapter_name=active)


@dataclass(frozen=True)
class Verdict:
    """Where a signal stands.

    Attributes:
        best: Index of the best reading of a model that is not the start's; 0 while there is none.
        stop: Index of the reading at which patience ran out; None while it lasts.
    """

    best: int
    stop: int | None


def signal_value(row: Mapping[str, Any], signal: str) -> float:
    """Return a signal (`cwdpo.probes.figures.signals`) from a row of `probes.jsonl`; NaN where the row lacks it."""
    value = row["kinds"][CHOSEN]["logp_mean"] if signal == "chosen" else row.get(signal)
    return float(value) if value is not None else math.nan


def follow(rows: Sequence[Mapping[str, Any]], signal: str, *, higher: bool, patience: int, min_delta: float) -> Verdict:
    """Apply `watch` to the rows of `probes.jsonl`.

    Rows whose log-probabilities are all those of the start are of the start's weights (an update at learning rate 0, as
    the first one of a warm-up, leaves them alone): none of them is chosen.
    """
    moved = [any(values["delta_start"] != 0 for values in row["kinds"].values()) for row in rows]
    first = moved.index(True) if True in moved else len(rows)
    values = [signal_value(row, signal) for row in rows]
    return watch(values, higher=higher, patience=patience, min_delta=min_delta, first=first)


def watch(values: Sequence[float], *, higher: bool, patience: int, min_delta: float = 0.0, first: int = 1) -> Verdict:
    """Follow a signal from reading to reading.

    Args:
        values: The signal at every reading.
        higher: Whether higher is better.
        patience: Readings without an improvement after which to stop.
        min_delta: By how much a reading must be better than the best one to count as an improvement.
        first: Index of the first reading that may be chosen: those before it are of the start's weights.

    Returns:
        The best reading up to the stop, and the stop.

    Raises:
        ValueError: `patience` is below 1 or `min_delta` is negative.
    """
    if patience < 1 or min_delta < 0:
        raise ValueError(f"patience = {patience}, min_delta = {min_delta}: must be at least 1 and at least 0")
    best, sign = 0, 1 if higher else -1
    for i in range(first, len(values)):
        if best == 0 or sign * (values[i] - values[best]) > min_delta:
            best = i
        if i - best >= patience:
            return Verdict(best, i)
    return Verdict(best, None)
