"""Stage 2: CW-DPO and its relatives on pairs of a chosen and a rejected response (paper, Eq. 6 and 7)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cwdpo import losses
from cwdpo.objectives.base import ObjectiveOutput, Tally, no_such_rows
from cwdpo.recipe import Stage2Section
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["PreferenceObjective"]


class PreferenceObjective:
    """One loss per pair; a prompt with several rejected responses gives a pair for each."""

    needs_reference = True

    def __init__(self, settings: Stage2Section) -> None:
        self.settings = settings

    def counts(self, batch: Batch) -> dict[str, float]:
        """Count pairs."""
        return {"pairs": float(len(batch.pairs()[1]))}

    def gate(self, sums: Mapping[str, float], totals: Mapping[str, float]) -> bool | None:
        """No term of a preference loss depends on the whole batch."""
        return None

    def pair_loss(self, pairs: losses.PairLogps) -> losses.PairLoss:
        """Return the configured loss of each pair."""
        s = self.settings
        if s.objective == "cw_dpo":
            return losses.cw_dpo(
                pairs, beta=s.beta, floor=s.floor, tau=s.tau, w_min=s.w_min, detach=s.detach, renormalise=s.renormalise
            )
        if s.objective == "dpo_shift":
            return losses.dpo_shift(pairs, beta=s.beta, weight=s.shift_weight)
        if s.objective == "rpo":
            return losses.rpo(pairs, beta=s.beta, alpha=s.sft_weight)
        return losses.dpo(pairs, beta=s.beta)

    def __call__(
        self, batch: Batch, scores: Scores, reference: Tensor | None, totals: Mapping[str, float], gate: bool | None
    ) -> ObjectiveOutput:
        """Compute the micro-batch's share of the mean pair loss. See `Objective.__call__`."""
        assert reference is not None
        if not totals["pairs"]:
            raise no_such_rows(batch, "chosen and a rejected response")
        chosen, rejected = batch.pairs()
        logps, tokens = scores.logp_sum, scores.tokens
        reference = reference.to(logps.device)
        pairs = losses.PairLogps(
            chosen=logps[chosen],
            rejected=logps[rejected],
            reference_chosen=reference[chosen],
            reference_rejected=reference[rejected],
            chosen_tokens=tokens[chosen],
            rejected_tokens=tokens[rejected],
        )
        found = self.pair_loss(pairs)
        return ObjectiveOutput(found.loss.sum() / totals["pairs"], self._tally(batch, scores, pairs, found))

    def _tally(self, batch: Batch, scores: Scores, pairs: losses.PairLogps, found: losses.PairLoss) -> Tally:
        s, tally = self.settings, Tally()
        rows, others = (sorted(set(side)) for side in batch.pairs())
        reward_chosen, reward_rejected = s.beta * pairs.chosen_shift, s.beta * pairs.rejected_shift
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
        tags = [responses[row].difficulty for row in batch.pairs()[1]]
        for name, values in quantities.items():
            tally.add(f"cooling/{name}", values)
            for tag in sorted({t for t in tags if t is not None}):
                chosen_tag = torch.tensor([t == tag for t in tags], device=values.device)
                tally.add(f"cooling/{name}/{tag}", values[chosen_tag])
        return tally

    def value(self, means: Mapping[str, float]) -> float:
        """Return the mean pair loss."""
        return means["pair_loss"]
