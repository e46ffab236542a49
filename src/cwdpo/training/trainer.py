"""The loop: transformers' Trainer with our collator, scorer and objective in place of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from cwdpo.errors import DataError, ModelError, NonFiniteError
from cwdpo.models.generation import RandomState, capture_random, inference, restore_random
from cwdpo.models.loading import sequence_limit
from cwdpo.objectives.base import Objective, ObjectiveOutput, Tally
from cwdpo.scoring.batch import Batch, Scores
from cwdpo.scoring.encode import GroupCollator, PromptEncoder
from cwdpo.scoring.reference import Reference, Scorer
from cwdpo.scoring.token_scores import scores_from_logits
from cwdpo.training.config import GroupTrainingArguments
from cwdpo.training.lengths import LengthGrouped, estimated_length
from cwdpo.training.sealed import SealedTrainer
from cwdpo.training.throughput import Stopwatch

__all__ = ["GroupTrainer"]

_TOKENS = "num_tokens"


@dataclass
class _Step:
    """One update under way: its micro-batches and what has been added up over them."""

    inputs: list[dict[str, Batch]]
    totals: dict[str, float]
    gate: bool
    random_state: RandomState
    done: int = 0
    gate_sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    tally: Tally = field(default_factory=Tally)
    losses: list[Tensor] = field(default_factory=list[Tensor])

    def restart(self, gate: bool) -> None:
        """Forget what was added up, to run the micro-batches again."""
        self.gate, self.done = gate, 0
        self.gate_sums, self.tally, self.losses = {}, Tally(), []


class GroupTrainer(SealedTrainer):
    """Trains on prompt groups: score all responses of a prompt, ask the objective for the loss.

    The loss of an update is a sum over its global batch divided once by the global count, so the result does not
    depend on how the batch is cut into micro-batches or ranks.

    Args:
        model: A vision-language model (with or without adapters).
        args: `SFTCConfig` or `CWDPOConfig`.
        objective: Batch and scores to a loss.
        train_dataset: Prompt groups.
        eval_dataset: Prompt groups for `evaluate`.
        processing_class: The model's processor.
        callbacks: As in transformers.
        reference: Where reference log-probabilities come from; needed by preference objectives.
        scorer: How responses are scored; default as `args.scorer` says.
        encoder: Prompt encoder; default made from the processor and `args`.
        picker: Leaves out of a micro-batch what its update does not train on; given the number of the update, from 0,
            and how many there are.
    """

    args: GroupTrainingArguments

    def __init__(
        self,
        model: Any,
        args: GroupTrainingArguments,
        objective: Objective,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[Any] | None = None,
        reference: Reference | None = None,
        scorer: Scorer | None = None,
        encoder: PromptEncoder | None = None,
        picker: Callable[[Batch, int, int], Batch] | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective = objective
        self.reference = reference
        self.picker = picker
        self.scorer: Scorer = scorer or args.make_scorer()
        self.encoder = encoder or PromptEncoder(
            processing_class, include_eos=args.include_eos, max_length=sequence_limit(model, args.max_length)
        )
        self.waiting = Stopwatch()
        self._step: _Step | None = None
        self._last_gate = True
        self._tally = Tally()
        if args.device.type == "cuda":
            # nn.DataParallel would cut image tensors apart; several GPUs go through accelerate.
            args._n_gpu = 1  # pyright: ignore[reportPrivateUsage]
        if args.gradient_checkpointing and hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
        super().__init__(
            model=model,
            args=args,
            data_collator=GroupCollator(self.encoder, objective.twin),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        self.loss_is_scaled_for_ga = True  # our loss is a share of the global batch's already

    def quiet(self) -> None:
        """Take out transformers' own progress output; another callback shows how training goes on."""
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer.

        Raises:
            ModelError: No weight is to be trained.
        """
        trained: Any = self.model if model is None else model
        if not any(p.requires_grad for p in trained.parameters()):
            raise ModelError(
                "no weight of the model is to be trained; load an adapter with is_trainable=True, or unfreeze a part"
            )
        return super().create_optimizer(model)

    @property
    def update_batches(self) -> list[Batch]:
        """This process's micro-batches of the update under way, or of the last one."""
        return [inputs["batch"] for inputs in self._step.inputs] if self._step is not None else []

    @property
    def update_totals(self) -> Mapping[str, float]:
        """The denominators of that update over all processes, and `num_tokens`."""
        return self._step.totals if self._step is not None else {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of the rows; with `group_by_length`, one that the seed and the epoch alone decide."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = [estimated_length(group, self.encoder.processor) for group in rows]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGrouped(lengths, self.args.train_batch_size * self.args.gradient_accumulation_steps, seed)

    # -- one update ------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of one update and count the denominators of its global batch."""
        with self.waiting:
            inputs, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.picker is not None:
            update, updates = self.state.global_step, self.state.max_steps
            inputs = [{**i, "batch": self.picker(i["batch"], update, updates)} for i in inputs]
        batches: list[Batch] = [i["batch"] for i in inputs]
        counts = _add_up(self.objective.counts(b) | {_TOKENS: float(_sequence_tokens(b))} for b in batches)
        totals = self._global_sums(counts)
        self._step = _Step(inputs, totals, self._last_gate, capture_random())
        return inputs, None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Add one micro-batch's gradient; after the last one, make sure that the gated term was guessed right.

        Returns:
            The update's loss after its last micro-batch and 0 before: what is logged does not depend on guesses.
        """
        step = self._step
        assert step is not None
        if step.done == 0:
            step.random_state = capture_random()
        loss = super().training_step(model, inputs, num_items_in_batch)
        step.losses.append(loss)
        step.done += 1
        if step.done < len(step.inputs):
            return torch.zeros_like(loss)
        gate = self.objective.gate(self._global_sums(step.gate_sums), step.totals)
        if gate is not None and gate != step.gate:
            self._redo(model, step, gate)
        self._last_gate = step.gate
        self._tally.merge(step.tally)
        self.state.num_input_tokens_seen += int(step.totals[_TOKENS])
        return torch.stack(step.losses).sum()

    def _redo(self, model: Any, step: _Step, gate: bool) -> None:
        """Run the update's micro-batches again with the gate as it turned out, from the same random state.

        The gate is known only after the whole global batch; guessing the last update's makes the usual update cost
        one pass, and this makes the unusual one exact.
        """
        model.zero_grad()
        restore_random(step.random_state)
        step.restart(gate)
        for index, inputs in enumerate(step.inputs):
            last = index == len(step.inputs) - 1
            with nullcontext() if last else self.accelerator.no_sync(model=model):
                step.losses.append(super().training_step(model, inputs, None))
            step.done += 1

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the micro-batch's share of the update's loss."""
        step = self._step
        assert step is not None
        batch: Batch = inputs["batch"]
        output, scores = self.score_batch(model, batch, step.totals, step.gate)
        self._check_finite(output.loss, scores, batch)
        step.tally.merge(output.tally)
        for name, value in output.gate_sums.items():
            step.gate_sums[name] = step.gate_sums[name] + value if name in step.gate_sums else value
        loss = output.loss * self.accelerator.num_processes  # ranks are averaged, our shares must add up
        return (loss, output) if return_outputs else loss

    def score_batch(
        self, model: Any, batch: Batch, totals: Mapping[str, float], gate: bool | None
    ) -> tuple[ObjectiveOutput, Scores]:
        """Score a batch under the policy and ask the objective. Policy and reference compute in the same type."""
        with self.accelerator.autocast():
            reference = self._reference_of(model, batch)
            scores = scores_from_logits(self.scorer(model, batch))
        return self.objective(batch, scores, reference, totals, gate), scores

    def _reference_of(self, model: Any, batch: Batch) -> Tensor | None:
        if self.reference is None:
            return None
        ask = self.reference.per_token if self.objective.tokenwise_reference else self.reference
        if self.objective.twin_reference:
            return ask(model, batch)
        own = ask(model, batch.own)
        return torch.cat([own, own.new_full((len(batch.responses) - len(own), *own.shape[1:]), torch.nan)])

    def _check_finite(self, loss: Tensor, scores: Scores, batch: Batch) -> None:
        if bool(torch.isfinite(loss)):
            return
        bad = [i for i, ok in enumerate(torch.isfinite(scores.logp_sum).tolist()) if not ok]
        names = {batch.groups[batch.owner[i]].origin for i in bad} or {g.origin for g in batch.groups}
        raise NonFiniteError(
            f"update {self.state.global_step + 1}: the loss is {float(loss.detach())}; nothing was updated. Rows: "
            f"{', '.join(sorted(names))}; lower the learning rate, or look at these rows"
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.accelerator.scaler is not None:
            return norm  # float16: the scaler tries scales until gradients are finite, and skips updates meanwhile
        if not bool(torch.isfinite(torch.as_tensor(norm))):
            assert self._step is not None
            rows = [g.origin for inputs in self._step.inputs for g in inputs["batch"].groups]
            raise NonFiniteError(
                f"update {self.state.global_step + 1}: the gradient norm is {float(norm)}; nothing was updated. Rows: "
                f"{', '.join(sorted(set(rows)))}; lower the learning rate, or train in float32"
            )
        return norm

    def _global_sums(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Add up named numbers over all ranks."""
        if self.accelerator.num_processes == 1 or not sums:
            return {name: float(value) for name, value in sums.items()}
        names = sorted(sums)
        local = torch.tensor([float(sums[n]) for n in names], dtype=torch.float64, device=self.accelerator.device)
        total: Any = self.accelerator.reduce(local, reduction="sum")
        return dict(zip(names, total.tolist(), strict=True))

    # -- evaluation and logging ------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the objective's loss and metrics over a whole data set."""
        model: Any = self.model
        tally, rows = Tally(), 0
        with inference(model):
            for inputs in dataloader:
                batch: Batch = inputs["batch"]
                rows += batch.prompts
                output, _ = self.score_batch(model, batch, self.objective.counts(batch), gate=None)
                tally.merge(output.tally)
        if not tally.sums:
            raise DataError(
                "the evaluation set has no response that the objective can use; give it chosen and rejected ones"
            )
        means = self._means(tally)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        metrics[f"{metric_key_prefix}_loss"] = self.objective.value(means)
        nothing: Any = ()
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=metrics, num_samples=rows)

    def _global_tally(self, tally: Tally) -> tuple[dict[str, float], dict[str, float]]:
        """Return the sums and the counts of a tally over all ranks."""
        local = ({name: float(total) for name, total in tally.sums.items()}, tally.counts)
        if self.accelerator.num_processes == 1:
            return local
        gathered: list[Any] = [None for _ in range(self.accelerator.num_processes)]
        torch.distributed.all_gather_object(gathered, local)
        sums, counts = (_add_up(part[i] for part in gathered) for i in (0, 1))
        return sums, counts

    def _means(self, tally: Tally) -> dict[str, float]:
        sums, counts = self._global_tally(tally)
        return {name: sums[name] / counts[name] for name in sorted(sums)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics gathered since the last log, under the names that TRL uses where it has them."""
        if "loss" in logs:
            logs = {**logs, "num_tokens": float(self.state.num_input_tokens_seen), **self._means(self._tally)}
            self._tally = Tally()
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Do nothing: `training_step` counts the tokens of an update, each response with its prompt."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Estimate 6 × parameters × tokens of one micro-batch, as transformers does for text models."""
        model: Any = self.model
        return 6 * _sequence_tokens(inputs["batch"]) * sum(p.numel() for p in model.parameters())

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def meters(self) -> dict[str, Any]:
        """Return what was added up since the last logged row, over all ranks."""
        sums, counts = self._global_tally(self._tally)
        return {"sums": sums, "counts": counts}

    def restore_meters(self, meters: dict[str, Any]) -> None:
        """Take up what `meters` returned, on one rank only: the next row adds up over all."""
        if self.is_world_process_zero():
            self._tally.sums = {name: torch.tensor(s, dtype=torch.float64) for name, s in meters["sums"].items()}
            self._tally.counts = meters["counts"]


def _sequence_tokens(batch: Batch) -> int:
    """Count tokens as TRL does: every response with its prompt before it."""
    return sum(len(g.prefix_ids) + len(r.ids) for g in batch.groups for r in g.responses)


def _add_up(rows: Iterator[dict[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
