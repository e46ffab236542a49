"""Stage 2: CW-DPO and its relatives on pairs of a chosen and a rejected response (paper, Eq. 6 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cwdpo import losses
from cwdpo.data.schema import PromptGroup
from cwdpo.objectives.base import ObjectiveOutput, Tally, no_such_rows
from cwdpo.objectives.spans import span_mask
from cwdpo.recipe import STAGE2_METHODS, Stage2Section
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["PreferenceObjective"]


class PreferenceObjective:
    """One loss per pair; a prompt with several rejected responses gives a pair for each.

    With `every_chosen` one with several chosen responses likewise.
    """

    twin: Callable[[PromptGroup], PromptGroup] | None = None
    twin_reference = True
    gated = False

    def __init__(self, settings: Stage2Section) -> None:
        self.settings = settings
        method = STAGE2_METHODS[settings.objective]
        self.needs_reference, self.every_chosen = method.reference, method.every_chosen
        self.tokenwise_reference = settings.objective == "cw_dpo" and settings.cooling_span == "differing"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Count pairs."""
        return {"pairs": float(len(batch.pairs(self.every_chosen)[1]))}

    def gate(self, sums: Mapping[str, float], totals: Mapping[str, float]) -> bool | None:
        """No term of a preference loss depends on the whole batch."""
        return None

    def pair_loss(
        self, pairs: losses.PairLogps, batch: Batch, scores: Scores, reference: Tensor, tally: Tally
    ) -> losses.PairLoss:
        """Return the loss of each pair; methods that look at more than the pairs have their own.

        Args:
            pairs: Log-probabilities of the pairs.
            batch: The micro-batch.
            scores: The policy's scores of its responses.
            reference: `Float[responses]`, summed reference log-probabilities.
            tally: Where metrics of the method's own go.
        """
        return losses.pair_loss(pairs, self.settings)

    def __call__(
        self, batch: Batch, scores: Scores, reference: Tensor | None, totals: Mapping[str, float], gate: bool | None
    ) -> ObjectiveOutput:
        """Compute the micro-batch's share of the mean pair loss. See `Objective.__call__`."""
        if not totals["pairs"]:
            raise no_such_rows(batch, "chosen and a rejected response")
        assert (reference is not None) == self.needs_reference
        known = torch.zeros_like(scores.logp_sum) if reference is None else reference.to(scores.logps.device)
        sums = known.sum(-1) if self.tokenwise_reference else known
        pairs = self._pairs(batch, scores, sums, known if self.tokenwise_reference else None)
        tally = Tally()
        found = self.pair_loss(pairs, batch, scores, sums, tally)
        self._add_metrics(tally, batch, scores, pairs, found)
        return ObjectiveOutput(found.loss.sum() / totals["pairs"], tally)

    def _pairs(self, batch: Batch, scores: Scores, sums: Tensor, by_token: Tensor | None) -> losses.PairLogps:
        chosen, rejected = batch.pairs(self.every_chosen)
        logps, tokens = scores.logp_sum, scores.tokens
        span = None
        if by_token is not None:
            ids = [response.ids for response in batch.responses]
            sides = [(ids[one], ids[other]) for one, other in zip(chosen, rejected, strict=True)]
            mask = span_mask(sides, scores.mask.shape[1]).to(logps.device)
            span = losses.SpanLogps(
                logp=(scores.logps[rejected] * mask).sum(-1),
                reference=(by_token[rejected] * mask[:, : by_token.shape[1]]).sum(-1),
                tokens=mask.sum(-1),
            )
        return losses.PairLogps(
            chosen=logps[chosen],
            rejected=logps[rejected],
            reference_chosen=sums[chosen],
            reference_rejected=sums[rejected],
            chosen_tokens=tokens[chosen],
            rejected_tokens=tokens[rejected],
            rejected_span=span,
        )

    def _rewards(self, pairs: losses.PairLogps) -> tuple[Tensor, Tensor]:
        """Return the implicit rewards of both sides: β·Δ, or β·ℓ̄ where there is no reference, as TRL has them."""
        beta = self.settings.beta
        if self.needs_reference:
            return beta * pairs.chosen_shift, beta * pairs.rejected_shift
        return beta * pairs.chosen_mean, beta * pairs.rejected_mean

    def _add_metrics(
        self, tally: Tally, batch: Batch, scores: Scores, pairs: losses.PairLogps, found: losses.PairLoss
    ) -> None:
        s = self.settings
        rows, others = (sorted(set(side)) for side in batch.pairs(self.every_chosen))
        reward_chosen, reward_rejected = self._rewards(pairs)
        tally.add("pair_loss", found.loss)
        tally.add("rewards/chosen", reward_chosen)
        tally.add("rewards/rejected", reward_rejected)
        tally.add("rewards/accuracies", (reward_chosen > reward_rejected).float())
        tally.add("rewards/margins", reward_chosen - reward_rejected)
        tally.add("logps/chosen", pairs.chosen)
        tally.add("logps/rejected", pairs.rejected)
        tally.add("entropy", scores.entropy[rows + others][scores.mask[rows + others]])
        tally.add("entropy/chosen", scores.entropy[rows][scores.mask[rows]])
        tally.add("mean_token_accuracy", scores.correct[rows][scores.mask[rows]].float())
        weight = losses.cooling_weight(pairs.rejected_mean.detach(), floor=s.floor, tau=s.tau, w_min=s.w_min)
        quantities = {
            "weight": weight,
            "applied_weight": found.weight,
            "winner_coefficient": found.winner_coefficient,
            "loser_coefficient": found.loser_coefficient,
            "rejected_logp_mean": pairs.rejected_mean,
        }
        responses = batch.responses
        tags = [responses[row].difficulty for row in batch.pairs(self.every_chosen)[1]]
        for name, values in quantities.items():
            tally.add(f"cooling/{name}", values)
            for tag in sorted({t for t in tags if t is not None}):
                chosen_tag = torch.tensor([t == tag for t in tags], device=values.device)
                tally.add(f"cooling/{name}/{tag}", values[chosen_tag])

    def value(self, means: Mapping[str, float]) -> float:
        """Return the mean pair loss."""
        return means["pair_loss"]
