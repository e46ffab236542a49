"""The one-step influence of a few training samples on a few held-out ones, followed through training (Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cwdpo.files import append_jsonl, read_json, write_json
from cwdpo.models.modes import inference
from cwdpo.probes.step_influence import SampleLoss, measure_influence
from cwdpo.processes import processes
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.callbacks.loop_callbacks import trim_rows

__all__ = ["InfluenceCallback", "reference_sums"]


def reference_sums(model: Any, scorer: Scorer, batches: Sequence[Batch]) -> list[list[float]]:
    """Return log π(y | x) of every response of every batch, nats."""
    with inference(model):
        return [scores_from_logits(scorer(model, batch)).logp_sum.tolist() for batch in batches]


class InfluenceCallback(TrainerCallback):
    """Takes and undoes a gradient step on each update sample at every reading, into `influence.jsonl`.

    The model at the start of training is the reference. Weights and random state are left as they are.

    Args:
        updates: Encoded update samples, one prompt a batch.
        observed: Encoded observed prompts.
        loss: The loss of the step.
        scorer: How responses are scored.
        folder: Where `influence.jsonl` goes.
        every: Updates between readings.
        eta: Size of the step.
    """

    def __init__(
        self,
        updates: Sequence[Batch],
        observed: Sequence[Batch],
        loss: SampleLoss,
        scorer: Scorer,
        folder: Path,
        *,
        every: int,
        eta: float = 1e-4,
    ) -> None:
        self.updates, self.observed, self.loss, self.scorer = updates, observed, loss, scorer
        self.path, self._start = folder / "influence.jsonl", folder / "influence_start.json"
        self.every, self.eta = every, eta
        self._sums: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Score under the reference and read the start, or resume both."""
        keys = [r.key for batch in self.updates for r in batch.responses]
        start = read_json(self._start, keys=list, sums=list) if state.global_step and self._start.is_file() else {}
        if start.get("keys") == keys:
            self._sums = start["sums"]
            processes().lead(lambda: trim_rows(self.path, state.global_step))
            return
        self._sums = reference_sums(model, self.scorer, self.updates)
        if state.is_world_process_zero:
            write_json(self._start, {"keys": keys, "sums": self._sums})
            self.path.unlink(missing_ok=True)
        self._read(model, state)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read when it is time."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._read(model, state)

    def _read(self, model: Any, state: Any) -> None:
        references = [torch.tensor(sums) for sums in self._sums] if self.loss.needs_reference else None
        how: dict[str, Any] = {"references": references, "eta": self.eta}
        rows = measure_influence(model, self.scorer, self.updates, self.observed, self.loss, **how)
        if state.is_world_process_zero:
            append_jsonl(self.path, *({"step": state.global_step, **row.to_json()} for row in rows))
