"""One update: its micro-batches fetched and counted, their gradients added, the gated term decided, bad rows named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cwdpo.devices import capture_random, restore_random
from cwdpo.errors import NonFiniteError
from cwdpo.models.parts import part_of
from cwdpo.objectives.objective import Objective, ObjectiveOutput, Tally
from cwdpo.processes import Processes
from cwdpo.scoring.batch import Batch, Scores
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.reference import LiveReference, Reference
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.callbacks.throughput import Stopwatch
from cwdpo.training.checkpointing import SealedTrainer
from cwdpo.training.configs import GroupTrainingArguments
from cwdpo.training.data_parallel import SharingScorer
from cwdpo.training.load_balancing import AUX_LOSS, LoadBalancing
from cwdpo.training.metric_sums import Meter
from cwdpo.training.nonfinite import NonFiniteGuard, blamed_rows, not_finite
from cwdpo.training.offloading import OffloadedActivations
from cwdpo.training.rollouts import Rollouts
from cwdpo.training.update import PROMPTS, TOKENS, Update, add_up, sequence_tokens

__all__ = ["UpdatingTrainer"]


class UpdatingTrainer(SealedTrainer):
    """Makes updates whose loss is a sum over the global batch, divided once by the global count.

    `GroupTrainer`, which sets it up, says what its attributes are.
    """

    args: GroupTrainingArguments
    objective: Objective
    reference: Reference | None
    picker: Callable[[Batch, int, int], Batch] | None
    rollouts: Rollouts | None
    scorer: Scorer
    shared_scorer: Scorer
    waiting: Stopwatch
    team: Processes
    guard: NonFiniteGuard
    balancing: LoadBalancing
    _meter: Meter
    _step: Update | None = None
    _last_gate: bool = True

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
        inputs: list[dict[str, Batch]] = []

        def batches() -> list[Any]:
            return super(UpdatingTrainer, self).get_batch_samples(epoch_iterator, num_batches, device)[0]

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
