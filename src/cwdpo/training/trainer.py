"""The loop: transformers' Trainer with our collator, scorer and objective in place of its forward pass.

From top to bottom: what is put together; the rows of an update; its gradient; evaluation and log; checkpoints; weights
that several processes share.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from cwdpo.data.hf_dataset import groups_from_dataset
from cwdpo.devices import RandomState, capture_random, restore_random
from cwdpo.errors import DataError, ModelError, NonFiniteError, RecipeError
from cwdpo.files import read_json, write_json
from cwdpo.models.loading import load_weights, sequence_limit
from cwdpo.models.meta_init import bare_copy, deal_when_wrapped, wrap_dealt
from cwdpo.models.modes import inference, keep_running_statistics
from cwdpo.models.parts import Part, give_own_rates, part_of
from cwdpo.models.quantized import compute_alike, is_quantized, weight_count
from cwdpo.objectives.objective import Objective, ObjectiveOutput, Tally
from cwdpo.processes import naming_lost_workers, processes
from cwdpo.scoring.batch import Batch, Scores
from cwdpo.scoring.collator import GroupCollator, PromptEncoder
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.reference import LiveReference, Reference
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.callbacks.throughput import Stopwatch
from cwdpo.training.checkpoints import reading, require_alike, require_whole, seal_checkpoint, writing
from cwdpo.training.configs import GroupTrainingArguments
from cwdpo.training.data_parallel import (
    LengthGrouped,
    Meter,
    SharedBatches,
    SharingScorer,
    add_up,
    estimated_length,
    means_over,
    shared_loader,
)
from cwdpo.training.load_balancing import AUX_LOSS, LoadBalancing
from cwdpo.training.nonfinite import NonFiniteGuard, blamed_rows, not_finite
from cwdpo.training.offloading import OffloadedActivations
from cwdpo.training.rollouts import Rollouts

__all__ = ["GroupTrainer"]

logger = logging.getLogger(__name__)

PROMPTS, TOKENS = "num_prompts", "num_tokens"
"""Keys of an update's prompts and tokens among its totals."""

_METERS = "meters.json"
"""File in a checkpoint: what was added up since the last logged row, and the responses sampled for updates to come."""


@dataclass
class Update:
    """One update under way.

    Attributes:
        inputs: This process's micro-batches.
        totals: Denominators over the global batch.
        gate: What the gate of the objective's gated term is taken to be.
        random_state: From which the micro-batches are run, and run again.
        done: Micro-batches that have been run.
        sums: What the objective wants added up over the global batch.
        tally: What is logged.
        losses: Of the micro-batches.
        broken: Why the update must not be made, where this process has found a reason.
    """

    inputs: list[dict[str, Batch]]
    totals: dict[str, float]
    gate: bool
    random_state: RandomState
    done: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    tally: Tally = field(default_factory=Tally)
    losses: list[Tensor] = field(default_factory=list[Tensor])
    broken: NonFiniteError | None = None

    @property
    def batches(self) -> list[Batch]:
        """The micro-batches themselves."""
        return [inputs["batch"] for inputs in self.inputs]

    @property
    def rows(self) -> list[str]:
        """Where this process's prompts are from."""
        return [group.origin for batch in self.batches for group in batch.groups]

    def restart(self, gate: bool) -> None:
        """Forget what was added up, to run the micro-batches again."""
        self.gate, self.done, self.broken = gate, 0, None
        self.sums, self.tally, self.losses = {}, Tally(), []

    def add_sums(self, output: ObjectiveOutput) -> None:
        """Add what the objective wants of a micro-batch."""
        for name, value in output.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def own_sums(self) -> dict[str, float]:
        """Return these sums over this process's rows."""
        return {name: float(value) for name, value in self.sums.items()}


def sequence_tokens(batch: Batch) -> int:
    """Count tokens as TRL does: every response with its prompt before it."""
    return sum(len(g.prefix_ids) + len(r.ids) for g in batch.groups for r in g.responses)


def _groups(dataset: Any, requires: str) -> Any:
    """Return a dataset as prompt groups; several by name likewise; None and the name of one as they are."""
    if dataset is None or isinstance(dataset, str):
        return dataset
    if isinstance(dataset, Mapping):
        return {name: groups_from_dataset(part, require=requires) for name, part in dataset.items()}
    return groups_from_dataset(dataset, require=requires)


class GroupTrainer(Trainer):
    """Trains on prompt groups: score all responses of a prompt, ask the objective for the loss.

    The loss of an update is a sum over its global batch divided once by the global count, so the result does not
    depend on how the batch is cut into micro-batches or ranks.

    Five private methods of transformers' Trainer are overridden, each for a reason that it states.

    Args:
        model: A vision-language model (with or without adapters).
        args: `SFTCConfig` or `CWDPOConfig`.
        objective: Batch and scores to a loss.
        train_dataset: Prompt groups, or a `datasets.Dataset` with TRL's columns.
        eval_dataset: Likewise, for `evaluate`.
        processing_class: The model's processor.
        callbacks: As in transformers.
        reference: Where reference log-probabilities come from; needed by preference objectives.
        scorer: How responses are scored; default as `args.scorer` says.
        encoder: Prompt encoder; default made from the processor and `args`.
        picker: Leaves out of a micro-batch what its update does not train on; given the number of the update, from 0,
            and how many there are.

    Attributes:
        rollouts: Gives the prompts of the next updates responses of the policy's own, where the objective is on-policy.
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
        self.rollouts: Rollouts | None = None
        self.scorer: Scorer = scorer or args.make_scorer()
        self.encoder = encoder or PromptEncoder(
            processing_class, include_eos=args.include_eos, max_length=sequence_limit(model, args.max_length)
        )
        self.waiting = Stopwatch()
        self._rated: dict[Part, int] = {}
        self._rates: dict[str, float] = {}
        self._step: Update | None = None
        self._last_gate = True
        self._resumed: dict[str, Any] | None = None
        self._deal: Callable[[Any], None] | None = None  # gives the wrapped model weights that another process has read
        self.team = processes()
        self._meter = Meter(self.team)
        self.balancing = LoadBalancing(model)
        keep_running_statistics(model)
        self.guard = NonFiniteGuard(skip=args.on_nonfinite == "skip")
        train_dataset, eval_dataset = (_groups(rows, objective.requires) for rows in (train_dataset, eval_dataset))
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
        if is_quantized(model):
            compute_alike(model)
            if self.is_fsdp_enabled:
                raise ModelError("weights in 4 bits cannot be shared among processes; use DDP, not FSDP")
        if args.activation_offloading and self.is_fsdp_enabled:
            raise ModelError("activation_offloading: weights that come and go are taken for activations; use DDP")
        if args.activation_offloading and args.device.type == "cpu":
            logger.warning(
                "activation_offloading: there is no GPU; activations are in main memory already, and nothing is saved"
            )

    def quiet(self) -> None:
        """Take out transformers' own progress output; another callback shows the progress of training."""
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as in transformers.

        Raises:
            RunError: A checkpoint cannot be read or written, or a worker of the data loader has ended.
        """
        with naming_lost_workers():
            return super().train(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer.

        Raises:
            ModelError: No weight is to be trained, or none of a part that has a learning rate of its own.
        """
        trained: Any = self.model if model is None else model
        if not any(p.requires_grad for p in trained.parameters()):
            raise ModelError(
                "no weight of the model is to be trained; load an adapter with is_trainable=True, or unfreeze a part"
            )
        given, optimizer = self.optimizer is not None, super().create_optimizer(model)
        if self.args.own_rates and not given:
            self._rated = give_own_rates(optimizer, trained, self.args.own_rates)
        return optimizer

    # -- the rows of an update -------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the training rows: each process gets its part of every update.

        With `group_by_length` the seed and the epoch alone decide on their order.
        """
        rows: Any = self.train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        if rows is None or not (grouped or self.team.size > 1):
            return super().get_train_dataloader()
        if grouped:
            lengths = [estimated_length(group, self.encoder.processor) for group in rows]
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            update = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.team.size
            order: Any = LengthGrouped(lengths, update, seed)
        else:
            order = self._get_train_sampler(rows)
        return self._loader(rows, order, self._train_batch_size, training=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the loader of an evaluation set, in its order: each process gets its part."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None or (self.team.size == 1 and self.args.train_sampling_strategy != "group_by_length"):
            return super().get_eval_dataloader(eval_dataset)
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows  # pyright: ignore[reportOptionalSubscript]
        return self._loader(rows, SequentialSampler(rows), self.args.eval_batch_size, training=False)

    def _loader(self, rows: Any, order: Any, size: int, *, training: bool) -> DataLoader[Any]:
        if self.team.size == 1:
            what = "Training" if training else "Evaluation"
            return self._get_dataloader(rows, what, size, sampler_fn=lambda _: order, is_training=training)
        batches = SharedBatches(
            order,
            micro=size,
            accumulation=self.args.gradient_accumulation_steps if training else 1,
            ranks=self.team.size,
            drop_last=training and self.args.dataloader_drop_last,
        )
        return self.accelerator.prepare(shared_loader(rows, batches, self.data_collator, self.args))

    @property
    def update_batches(self) -> list[Batch]:
        """This process's micro-batches of the update under way, or of the last one."""
        return self._step.batches if self._step is not None else []

    @property
    def update_totals(self) -> Mapping[str, float]:
        """The denominators of that update over all processes, and `num_tokens`."""
        return self._step.totals if self._step is not None else {}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of one update and count the denominators of its global batch."""
        self._resume_row()
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
        return counted | {TOKENS: float(sequence_tokens(batch)), PROMPTS: float(batch.prompts)}

    # -- its gradient ----------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Add one micro-batch's gradient; after the last one, make sure that the gated term was guessed right.

        Returns:
            The update's loss after its last micro-batch and 0 before: what is logged does not depend on guesses.
        """
        step = self._step
        assert step is not None
        if step.done == 0:
            step.random_state = capture_random()
            optimizer: Any = self.optimizer
            rated = {part: optimizer.param_groups[index]["lr"] for part, index in self._rated.items()}
            self._rates = {f"learning_rate/{part}": rate for part, rate in rated.items()}
        loss = super().training_step(model, inputs, num_items_in_batch)
        step.losses.append(loss)
        step.done += 1
        if step.done < len(step.inputs):
            return torch.zeros_like(loss)
        if self._is_skipped(model, step):
            return torch.zeros_like(loss)
        if self.objective.gated:
            gate = self.objective.gate(add_up(self.team.gather(step.own_sums())), step.totals)
            if gate != step.gate:
                self._redo(model, step, gate)
                if self._is_skipped(model, step):
                    return torch.zeros_like(loss)
        self._let_go_of_the_unseen(model, step)
        self._last_gate = step.gate
        self._meter.merge(step.tally)
        self.state.num_input_tokens_seen += int(step.totals[TOKENS])
        return torch.stack(step.losses).sum()

    def _let_go_of_the_unseen(self, model: Any, step: Update) -> None:
        """Leave an update without pictures no gradient in what reads pictures, as one process does.

        Stand-ins leave zeros there, with which an optimizer that has moments would move these weights.
        """
        seen = self.team.gather(any(g.vision for batch in step.batches for g in batch.groups))
        if any(seen) or len(seen) == 1:
            return
        for name, weight in model.named_parameters():
            if part_of(name) != "language":
                weight.grad = None

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
        step.add_sums(output)
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
            # Logits are needed again at once: what keeps them is outside.
            with (
                OffloadedActivations(model) if self.args.activation_offloading else nullcontext(),
                self.balancing.recorded() as routed,
            ):
                logits = self.shared_scorer(model, batch)
            scores = scores_from_logits(logits)
        output = self.objective(batch, scores, reference, totals, gate)
        if self.balancing.weight:
            unbalanced = self.balancing.loss(routed, logits)
            output.tally.add(AUX_LOSS, unbalanced)
            share = self.balancing.weight * batch.prompts / totals[PROMPTS]
            output = replace(output, loss=output.loss + share * unbalanced)
        return output, scores

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
        """Return the norm; an update whose gradient is not finite is stopped or skipped here, before it is made."""
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

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the loss and the metrics over the evaluation set, or another one in any form the trainer takes."""
        return super().evaluate(_groups(eval_dataset, self.objective.requires), *args, **kwargs)

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
        balance = self.balancing.weight * means.get(AUX_LOSS, 0.0)
        metrics[f"{metric_key_prefix}_loss"] = self.objective.value(means) + balance
        nothing: Any = ()
        return EvalLoopOutput(
            predictions=nothing, label_ids=None, metrics=metrics, num_samples=sum(self.team.gather(rows))
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics gathered since the last log, under the names that TRL uses where it has them."""
        if "loss" in logs:
            logs = {**logs, "num_tokens": float(self.state.num_input_tokens_seen), **self._meter.empty()}
            logs = self.guard.corrected(logs | self._rates)
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Estimate 6 × parameters × tokens of one micro-batch, as transformers does for text models."""
        model: Any = self.model
        return 6 * sequence_tokens(inputs["batch"]) * sum(weight_count(p) for p in model.parameters())

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save_whole(self, folder: Path) -> None:
        """Write the model as one that `from_pretrained` reads, out of all its shards; rank 0 writes."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None:
            plugin.set_state_dict_type("FULL_STATE_DICT")
        with writing(folder):
            self.save_model(str(folder))

    def load_finished(self, checkpoint: Path) -> None:
        """Load the weights of the checkpoint after the last update, to end with them.

        Sharded weights need their optimizer's wrapper around them first.
        """
        if self.is_fsdp_enabled:
            self._prepare_for_training(self.args.max_steps, None, str(checkpoint))
        else:
            self._load_from_checkpoint(str(checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, mark it complete, and only then delete older ones.

        transformers deletes older ones before anything says that the new one is whole.
        """
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        limit = self.args.save_total_limit
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        self.args.save_total_limit = None
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        loss: Any = self.accelerator.gather(self._tr_loss)
        row: dict[str, Any] = {"loss": float(loss.mean()), "since": self._globalstep_last_logged}
        row |= self._meter.state()
        if self.rollouts is not None:
            row["rollouts"] = self.rollouts.state()
        if self.args.should_save:
            with writing(folder):
                write_json(folder / _METERS, row)
                seal_checkpoint(folder)
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Prepare the model and take up a checkpoint: whole, of the same kind, with what it holds of ours."""
        self._resumed = None
        if self.is_fsdp_enabled:
            self._deal = deal_when_wrapped(self.model)
        prepare = super()._prepare_for_training
        if resume_from_checkpoint is None:
            prepared = prepare(max_steps, train_dataloader, None)
        else:
            checkpoint = Path(resume_from_checkpoint)
            self._require_usable(checkpoint)
            if (file := checkpoint / _METERS).is_file():
                self._resumed = row = read_json(file, loss=float, since=int)
                if self.rollouts is not None:
                    self.rollouts.restore(row["rollouts"])

            def read() -> Any:
                with reading(checkpoint):
                    return prepare(max_steps, train_dataloader, resume_from_checkpoint)

            prepared = processes().each(read)
        self._deal_out(prepared[0])
        return prepared

    def _resume_row(self) -> None:
        """Take up what was added up for the next logged row, so that a resumed run logs the same rows."""
        if (row := self._resumed) is not None:
            self._resumed = None
            self._tr_loss += row["loss"]
            self._globalstep_last_logged = row["since"]
            if self.is_world_process_zero():  # the next row adds up over all processes
                self._meter.restore(row)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights that a checkpoint was saved with.

        Vision-language models are saved under other names than they have in memory. transformers' Trainer looks for
        the latter and continues with what it has where they are missing; here the model class translates them.

        Raises:
            RunError: It is damaged, or was saved by processes that share the work otherwise.
        """
        checkpoint, target = Path(resume_from_checkpoint), self.model if model is None else model
        self._require_usable(checkpoint)
        self._deal_out(model)
        load = super()._load_from_checkpoint

        def read() -> None:
            with reading(checkpoint):
                load(resume_from_checkpoint, model)

        if self._weights_are_whole(target):
            load_weights(target, checkpoint)
        else:
            processes().each(read)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint, under their names as `_load_from_checkpoint` does."""
        best = Path(str(self.state.best_model_checkpoint))
        require_whole(best)
        if self._weights_are_whole(self.model):
            load_weights(self.model, best)
        else:
            super()._load_best_model()

    def _require_usable(self, checkpoint: Path) -> None:
        processes().lead(lambda: require_whole(checkpoint))
        require_alike(checkpoint, sharded=self.is_fsdp_enabled)

    def _weights_are_whole(self, model: Any) -> bool:
        """Whether checkpoints hold all weights in one piece: not shards, not an adapter."""
        return not (self.is_fsdp_enabled or hasattr(model, "peft_config"))

    def _deal_out(self, model: Any) -> None:
        """Give a model that was just wrapped its weights, before those of a checkpoint."""
        if self._deal is not None:
            deal, self._deal = self._deal, None
            deal(model)

    # -- weights that processes share ------------------------------------------------------------------------------

    def shard(self, model: Any, source: Any = None) -> Any:
        """Wrap a model that is not trained: its weights are shared among the processes where the policy's are.

        Args:
            model: Whole, or bare (`cwdpo.models.meta_init`) in all processes but the first.
            source: The whole model that `model` is a bare copy of.

        Raises:
            RecipeError: Sharding is set up in a way that only training knows.
        """
        if not self.accelerator.is_fsdp2:
            raise RecipeError("sharding needs FSDP2 here; set fsdp_version: 2 in the configuration of accelerate")
        return wrap_dealt(model, lambda bare: fsdp2_prepare_model(self.accelerator, bare), source)

    def shard_copy(self, model: Any) -> Any:
        """Return a copy of a model that is not trained, wrapped as by `shard`; the model stays as it is."""
        return self.shard(bare_copy(model), model)
