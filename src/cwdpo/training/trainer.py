"""The loop: transformers' Trainer with our collator, scorer and objective in place of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from cwdpo.errors import DataError, ModelError, NonFiniteError
from cwdpo.models.generation import capture_random, inference, restore_random
from cwdpo.models.loading import sequence_limit
from cwdpo.objectives.base import Objective, ObjectiveOutput, Tally
from cwdpo.processes import processes
from cwdpo.scoring.batch import Batch, Scores
from cwdpo.scoring.encode import GroupCollator, PromptEncoder
from cwdpo.scoring.reference import LiveReference, Reference, Scorer
from cwdpo.scoring.token_scores import scores_from_logits
from cwdpo.training.config import GroupTrainingArguments
from cwdpo.training.lengths import LengthGrouped, estimated_length
from cwdpo.training.meter import Meter, means_over
from cwdpo.training.nonfinite import NonFiniteGuard, blamed_rows, not_finite
from cwdpo.training.rollouts import Rollouts
from cwdpo.training.sealed import SealedTrainer
from cwdpo.training.sharing import SharedBatches, SharingScorer, shared_loader
from cwdpo.training.throughput import Stopwatch
from cwdpo.training.update import TOKENS, Update, add_up, sequence_tokens
from cwdpo.training.zero import require_whole_models

__all__ = ["GroupTrainer"]


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
        rollouts: Gives the prompts of the next updates responses of the policy's own; objectives that are on-policy
            need it.
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
        rollouts: Rollouts | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective = objective
        self.reference = reference
        self.picker = picker
        self.rollouts = rollouts
        self.scorer: Scorer = scorer or args.make_scorer()
        self.encoder = encoder or PromptEncoder(
            processing_class, include_eos=args.include_eos, max_length=sequence_limit(model, args.max_length)
        )
        self.waiting = Stopwatch()
        self._step: Update | None = None
        self._last_gate = True
        self.team = processes()
        self._meter = Meter(self.team)
        self.guard = NonFiniteGuard(skip=args.on_nonfinite == "skip")
        rows = eval_dataset if train_dataset is None else train_dataset
        self.shared_scorer = SharingScorer(self.scorer, rows, self.encoder) if self.team.size > 1 else self.scorer
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
        if rollouts is not None and (self.team.size > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ModelError(
                "grpo and ppo sample from the whole model in one process; train without others, FSDP and DeepSpeed"
            )
        if self.is_deepspeed_enabled:
            require_whole_models(self.accelerator.state.deepspeed_plugin)
            if self.guard.skip:
                raise ModelError("on_nonfinite: skip lets gradients go, which DeepSpeed keeps; use stop, or FSDP")

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
        return self._step.batches if self._step is not None else []

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
        update = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.team.size
        return LengthGrouped(lengths, update, seed)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any
    ) -> DataLoader[Any]:
        """Return the loader of a data set; of several processes, each gets its share of every update."""
        if self.team.size == 1:
            return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
        training = bool(kwargs.get("is_training"))
        order = self._get_train_sampler(dataset) if training else SequentialSampler(dataset)
        batches = SharedBatches(
            order,
            micro=batch_size,
            accumulation=self.args.gradient_accumulation_steps if training else 1,
            ranks=self.team.size,
            drop_last=training and self.args.dataloader_drop_last,
        )
        return self.accelerator.prepare(shared_loader(dataset, batches, self.data_collator, self.args))

    # -- one update ------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of one update and count the denominators of its global batch."""
        inputs: list[dict[str, Batch]] = []

        def batches() -> list[Any]:
            return super(GroupTrainer, self).get_batch_samples(epoch_iterator, num_batches, device)[0]

        def fetch() -> dict[str, float]:
            with self.waiting:
                inputs.extend(batches() if self.rollouts is None else self._sampled(self.rollouts, batches))
            if self.picker is not None:
                update, updates = self.state.global_step, self.state.max_steps
                inputs[:] = [{**i, "batch": self.picker(i["batch"], update, updates)} for i in inputs]
            return add_up(self._counts(i["batch"]) for i in inputs)

        totals = add_up(self.team.share(fetch))
        self._step = Update(inputs, totals, self._last_gate, capture_random())
        return inputs, None

    def _sampled(self, rollouts: Rollouts, fetch: Callable[[], list[Any]]) -> list[Any]:
        """Return the micro-batches of the update with responses that the policy has sampled."""
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            found = rollouts.next(model, lambda: [i["batch"] for i in fetch()], self.state.global_step)
        return [{"batch": batch} for batch in found]

    def _counts(self, batch: Batch) -> dict[str, float]:
        counted = self.objective.counts(batch) if batch.groups else {}
        return counted | {TOKENS: float(sequence_tokens(batch))}

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Add one micro-batch's gradient; after the last one, make sure that the gated term was guessed right.

        Returns:
            The update's loss after its last micro-batch and 0 before: what is logged does not depend on guesses.
        """
        step = self._step
        assert step is not None
        if step.done == 0:
            step.random_state = capture_random()
            if self.is_deepspeed_enabled:
                self._foresee(model, step)
        loss = super().training_step(model, inputs, num_items_in_batch)
        step.losses.append(loss)
        step.done += 1
        if step.done < len(step.inputs):
            return torch.zeros_like(loss)
        if self._is_skipped(model, step):
            return torch.zeros_like(loss)
        gate = self.objective.gate(add_up(self.team.gather(step.sums_of_gate())), step.totals)
        if gate is not None and gate != step.gate and not self.is_deepspeed_enabled:
            self._redo(model, step, gate)
            if self._is_skipped(model, step):
                return torch.zeros_like(loss)
        self._last_gate = step.gate
        self._meter.merge(step.tally)
        self.state.num_input_tokens_seen += int(step.totals[TOKENS])
        return torch.stack(step.losses).sum()

    def _is_skipped(self, model: Any, step: Update) -> bool:
        """Whether the update must not be made, whatever process has found it so: then its gradient is let go.

        Raises:
            NonFiniteError: It stops training.
        """
        found = [text for text in self.team.gather(str(step.broken) if step.broken is not None else "") if text]
        if found:
            step.broken = NonFiniteError(found[0])
            self._skip(model, step.broken, has_loss=False)
        return bool(found)

    def _skip(self, model: Any, error: NonFiniteError, *, has_loss: bool) -> None:
        self.guard.meet(self.state.global_step + 1, error, has_loss=has_loss)
        model.zero_grad(set_to_none=True)  # the optimizer passes over weights without a gradient

    def _redo(self, model: Any, step: Update, gate: bool) -> None:
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

    def _foresee(self, model: Any, step: Update) -> None:
        """Find the gate by a pass without gradients, where the update cannot be run again.

        DeepSpeed makes the update within the last micro-batch's backward pass.
        """
        if not self.objective.gated:
            return
        model.train()
        with torch.no_grad():
            for batch in step.batches:
                step.add_gate_sums(self.score_batch(model, batch, step.totals, step.gate)[0])
        gate = self.objective.gate(add_up(self.team.gather(step.sums_of_gate())), step.totals)
        restore_random(step.random_state)
        step.restart(bool(gate))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the micro-batch's share of the update's loss."""
        step = self._step
        assert step is not None
        batch: Batch = inputs["batch"]
        output, scores = self.score_batch(model, batch, step.totals, step.gate)
        self._check_finite(step, output.loss, scores, batch)
        step.tally.merge(output.tally)
        step.add_gate_sums(output)
        loss = output.loss * self.accelerator.num_processes  # ranks are averaged, our shares must add up
        return (loss, output) if return_outputs else loss

    def score_batch(
        self, model: Any, batch: Batch, totals: Mapping[str, float], gate: bool | None
    ) -> tuple[ObjectiveOutput, Scores]:
        """Score a batch under the policy and ask the objective. Policy and reference compute in the same type."""
        if not batch.groups:
            return self._nothing(model)
        with self.accelerator.autocast():
            reference = self._reference_of(model, batch)
            scores = scores_from_logits(self.shared_scorer(model, batch))
        return self.objective(batch, scores, reference, totals, gate), scores

    def _nothing(self, model: Any) -> tuple[ObjectiveOutput, Scores]:
        """Run what other ranks run while this one has no rows."""
        assert isinstance(self.shared_scorer, SharingScorer)
        batch = Batch((self.shared_scorer.stand_in,))
        with self.accelerator.autocast():
            if isinstance(self.reference, LiveReference):
                self.reference(model, batch)
            scores = scores_from_logits(self.scorer(model, batch))
        return ObjectiveOutput(0.0 * scores.logps.sum(), Tally()), scores

    def _reference_of(self, model: Any, batch: Batch) -> Tensor | None:
        if self.reference is None:
            return None
        ask = self.reference.per_token if self.objective.tokenwise_reference else self.reference
        if self.objective.twin_reference:
            return ask(model, batch)
        own = ask(model, batch.own)
        return torch.cat([own, own.new_full((len(batch.responses) - len(own), *own.shape[1:]), torch.nan)])

    def _check_finite(self, step: Update, loss: Tensor, scores: Scores, batch: Batch) -> None:
        """Look at a loss; several processes, and those that skip updates, decide after the last micro-batch."""
        if bool(torch.isfinite(loss)):
            return
        what = f"the loss is {float(loss.detach())}"
        remedy = "lower the learning rate, or look at these rows"
        step.broken = step.broken or not_finite(self.state.global_step + 1, what, blamed_rows(batch, scores), remedy)
        if self.team.size == 1 and not self.guard.skip:
            raise step.broken

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.accelerator.scaler is not None:
            return norm  # float16: the scaler tries scales until gradients are finite, and skips updates meanwhile
        if not bool(torch.isfinite(torch.as_tensor(norm))):
            assert self._step is not None
            rows = [name for part in self.team.gather(self._step.rows) for name in part]
            remedy = "lower the learning rate, or train in float32"
            error = not_finite(self.state.global_step + 1, f"the gradient norm is {float(norm)}", rows, remedy)
            self._skip(self.model, error, has_loss=True)
            return torch.zeros(())
        if self._step is not None and self._step.broken is None:
            self.guard.passed()
        return norm

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
                output, _ = self.score_batch(model, batch, self._counts(batch), gate=None)
                tally.merge(output.tally)
        if not any(self.team.gather(bool(tally.sums))):
            raise DataError(
                "the evaluation set has no response that the objective can use; give it chosen and rejected ones"
            )
        means = means_over(self.team, tally)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        metrics[f"{metric_key_prefix}_loss"] = self.objective.value(means)
        nothing: Any = ()
        return EvalLoopOutput(
            predictions=nothing, label_ids=None, metrics=metrics, num_samples=sum(self.team.gather(rows))
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics gathered since the last log, under the names that TRL uses where it has them."""
        if "loss" in logs:
            logs = {**logs, "num_tokens": float(self.state.num_input_tokens_seen), **self._meter.empty()}
            logs = self.guard.corrected(logs)
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Do nothing: `training_step` counts the tokens of an update, each response with its prompt."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Estimate 6 × parameters × tokens of one micro-batch, as transformers does for text models."""
        model: Any = self.model
        return 6 * sequence_tokens(inputs["batch"]) * sum(p.numel() for p in model.parameters())

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def meters(self) -> dict[str, Any]:
        """Return what was added up since the last logged row, over all ranks."""
        found: dict[str, Any] = {**self._meter.state()}
        if self.rollouts is not None:
            found["rollouts"] = self.rollouts.state()
        return found

    def restore_meters(self, meters: dict[str, Any]) -> None:
        """Take up what `meters` returned, on one rank only: the next row adds up over all."""
        if self.is_world_process_zero():
            self._meter.restore(meters)

    def restore_batches(self, meters: dict[str, Any]) -> None:
        """Take up the responses that were sampled for the next updates."""
        if self.rollouts is not None:
            self.rollouts.restore(meters["rollouts"])
