"""The loop: transformers' Trainer with our collator, scorer and objective in place of its forward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from cwdpo.errors import DataError, ModelError
from cwdpo.models.loading import sequence_limit
from cwdpo.models.modes import inference
from cwdpo.models.parts import Part
from cwdpo.models.quantized import compute_alike, is_quantized, weight_count
from cwdpo.objectives.objective import Objective, Tally
from cwdpo.processes import naming_lost_workers, processes
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import GroupCollator, PromptEncoder
from cwdpo.scoring.reference import Reference
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.callbacks.throughput import Stopwatch
from cwdpo.training.configs import GroupTrainingArguments
from cwdpo.training.data_parallel import SharedBatches, SharingScorer, shared_loader
from cwdpo.training.length_grouping import LengthGrouped, estimated_length
from cwdpo.training.load_balancing import AUX_LOSS, LoadBalancing
from cwdpo.training.metric_sums import Meter, means_over
from cwdpo.training.nonfinite import NonFiniteGuard
from cwdpo.training.param_groups import give_own_rates
from cwdpo.training.rollouts import Rollouts
from cwdpo.training.update import sequence_tokens
from cwdpo.training.updating import UpdatingTrainer

__all__ = ["GroupTrainer"]

logger = logging.getLogger(__name__)


class GroupTrainer(UpdatingTrainer):
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
        self._rated: dict[Part, int] = {}
        self._rates: dict[str, float] = {}
        self.team = processes()
        self._meter = Meter(self.team)
        self.balancing = LoadBalancing(model)
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
        if rollouts is not None:
            rollouts.weigher.scorer = self.shared_scorer
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
        """Take out transformers' own progress output; another callback shows how training goes on."""
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

    def _get_learning_rate(self) -> float:
        """Return the learning rate of the update under way, and note those of parts that have their own."""
        optimizer: Any = self.optimizer
        rates = {part: optimizer.param_groups[index]["lr"] for part, index in self._rated.items()}
        self._rates = {f"learning_rate/{part}": rate for part, rate in rates.items()}
        return super()._get_learning_rate()

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

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Do nothing: `training_step` counts the tokens of an update, each response with its prompt."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Estimate 6 × parameters × tokens of one micro-batch, as transformers does for text models."""
        model: Any = self.model
        return 6 * sequence_tokens(inputs["batch"]) * sum(weight_count(p) for p in model.parameters())

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
