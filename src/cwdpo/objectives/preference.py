"""Stage 2: any method on pairs of a chosen and a rejected response; its metrics are derived here, once for all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cwdpo.errors import DataError, RecipeError
from cwdpo.methods.base import Method, coefficients
from cwdpo.methods.cooling import Cooling, cooling_weight
from cwdpo.methods.pair_logps import AlteredLogps, CutLogps, PairLogps, SpanLogps
from cwdpo.objectives.differing_span import span_mask
from cwdpo.objectives.image_twins import Twins, altered_rows
from cwdpo.objectives.objective import Objective, ObjectiveOutput, Tally, no_such_rows
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["PreferenceObjective", "pair_logps"]


class PreferenceObjective(Objective):
    """The mean of a method's loss over pairs; a prompt with several rejected responses makes a pair with each.

    Args:
        method: The loss.
        cooling: Where the metrics under `cooling/` call a rejected response easy; the method's own where it has them.
        seed: Fixes how images are altered.
    """

    def __init__(self, method: Method, cooling: Cooling | None = None, seed: int = 0) -> None:
        self.method, self._needs = method, method.needs
        self._cooling = method if isinstance(method, Cooling) else cooling or Cooling()
        self.needs_reference = self._needs.reference
        self.tokenwise_reference = self._needs.span or self._needs.cut
        self.twin_reference = self._needs.altered_reference
        if self._needs.image:
            self.twin = Twins(self._needs.image, self._needs.altered, seed)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Count pairs."""
        return {"pairs": float(len(batch.pairs(self._needs.every_chosen)[1]))}

    def __call__(
        self, batch: Batch, scores: Scores, reference: Tensor | None, totals: Mapping[str, float], gate: bool | None
    ) -> ObjectiveOutput:
        """Compute the micro-batch's share of the mean pair loss. See `Objective.__call__`."""
        if not totals["pairs"]:
            raise no_such_rows(batch, "chosen and a rejected response")
        assert (reference is not None) == self.needs_reference
        if reference is not None:
            reference = reference.to(scores.logps.device)
        pairs = pair_logps(self.method, batch, scores.logps, scores.mask, reference)
        if self._needs.whole_batch and len(pairs.chosen) != totals["pairs"]:
            raise RecipeError(
                f"{self.method.label}: compares all pairs of an update, and sees {len(pairs.chosen)} of "
                f"{totals['pairs']:g} at once; give it whole updates (micro_batch_size = batch_size, one process)"
            )
        losses = self.method.loss(pairs)
        tally = Tally()
        tally.add("pair_loss", losses)
        self._add_metrics(tally, batch, scores, pairs)
        return ObjectiveOutput(losses.sum() / totals["pairs"], tally)

    def _add_metrics(self, tally: Tally, batch: Batch, scores: Scores, pairs: PairLogps) -> None:
        chosen, rejected = batch.pairs(self._needs.every_chosen)
        beta = self.method.reward_scale
        # Implicit rewards are β·Δ, or β·ℓ̄ without a reference, as in TRL.
        shifts = (pairs.chosen_shift, pairs.rejected_shift)
        means = (pairs.chosen_mean, pairs.rejected_mean)
        reward_chosen, reward_rejected = (beta * values for values in (shifts if self.needs_reference else means))
        tally.add("rewards/chosen", reward_chosen)
        tally.add("rewards/rejected", reward_rejected)
        tally.add("rewards/accuracies", (reward_chosen > reward_rejected).float())
        tally.add("rewards/margins", reward_chosen - reward_rejected)
        tally.add("logps/chosen", pairs.chosen)
        tally.add("logps/rejected", pairs.rejected)
        if pairs.altered is not None and self.twin_reference:
            tally.add("rewards/altered", beta * pairs.altered.chosen_shift)
        elif pairs.altered is not None:
            tally.add("logps/null_chosen", pairs.altered.chosen)
            tally.add("logps/null_rejected", pairs.altered.rejected)
        rows, others = sorted(set(chosen)), sorted(set(rejected))
        tally.add("entropy", scores.entropy[rows + others][scores.mask[rows + others]])
        tally.add("entropy/chosen", scores.entropy[rows][scores.mask[rows]])
        tally.add("mean_token_accuracy", scores.correct[rows][scores.mask[rows]].float())
        winner, loser = coefficients(self.method, pairs)
        c, mean = self._cooling, pairs.rejected_mean.detach()
        quantities = {
            "weight": cooling_weight(mean, floor=c.floor, tau=c.tau, w_min=getattr(c, "w_min", 0.0)),
            "winner_coefficient": winner,
            "loser_coefficient": loser,
            "rejected_logp_mean": mean,
        }
        tags = [batch.responses[row].difficulty for row in rejected]
        for name, values in quantities.items():
            tally.add(f"cooling/{name}", values)
            for tag in sorted({t for t in tags if t is not None}):
                tagged = torch.tensor([t == tag for t in tags], device=values.device)
                tally.add(f"cooling/{name}/{tag}", values[tagged])

    def value(self, means: Mapping[str, float]) -> float:
        """Return the mean pair loss."""
        return means["pair_loss"]


def pair_logps(method: Method, batch: Batch, logps: Tensor, mask: Tensor, reference: Tensor | None) -> PairLogps:
    """Return what a method reads of a batch's pairs.

    Args:
        method: Says what it needs.
        batch: The responses.
        logps: `Float[responses, tokens]`, log π_θ, 0 at padding.
        mask: `Bool[responses, tokens]`, true at response tokens.
        reference: `Float[responses]`, summed log π_ref, or `[responses, tokens]`; None is a reference of 0.
    """
    needs = method.needs
    chosen, rejected = batch.pairs(needs.every_chosen)
    sums, tokens = logps.sum(-1), mask.sum(-1).to(logps.dtype)
    reference = torch.zeros_like(sums) if reference is None else reference
    reference_sums = reference.sum(-1) if reference.ndim == 2 else reference
    score_gap = span = cut = altered = None
    if needs.scores:
        gaps = [_score(batch, one) - _score(batch, other) for one, other in zip(chosen, rejected, strict=True)]
        score_gap = torch.tensor(gaps).to(sums)
    if needs.span:
        ids = [response.ids for response in batch.responses]
        sides = [(ids[one], ids[other]) for one, other in zip(chosen, rejected, strict=True)]
        differing = span_mask(sides, mask.shape[1]).to(logps.device)
        span = SpanLogps(
            logp=(logps[rejected] * differing).sum(-1),
            reference=(reference[rejected] * differing[:, : reference.shape[1]]).sum(-1),
            tokens=differing.sum(-1),
        )
    if needs.cut:
        shorter = torch.minimum(mask[chosen].sum(-1), mask[rejected].sum(-1))[:, None]
        first = torch.arange(mask.shape[1], device=logps.device) < shorter
        known = first[:, : reference.shape[1]]
        cut = CutLogps(
            chosen=(logps[chosen] * first).sum(-1),
            rejected=(logps[rejected] * first).sum(-1),
            reference_chosen=(reference[chosen] * known).sum(-1),
            reference_rejected=(reference[rejected] * known).sum(-1),
        )
    if needs.image:
        twins = altered_rows(batch, chosen)
        both = "rejected" in needs.altered
        altered = AlteredLogps(
            chosen=sums[twins],
            rejected=sums[altered_rows(batch, rejected)] if both else torch.full_like(sums[twins], torch.nan),
            reference_chosen=reference_sums[twins],
        )
    return PairLogps(
        chosen=sums[chosen],
        rejected=sums[rejected],
        reference_chosen=reference_sums[chosen],
        reference_rejected=reference_sums[rejected],
        chosen_tokens=tokens[chosen],
        rejected_tokens=tokens[rejected],
        score_gap=score_gap,
        span=span,
        cut=cut,
        altered=altered,
    )


def _score(batch: Batch, row: int) -> float:
    """Return what the data say of a response.

    Raises:
        DataError: Nothing.
    """
    response, group = batch.responses[row], batch.groups[batch.owner[row]]
    if response.score is None:
        raise DataError(
            f"{group.origin}: a {response.role} response ({response.source}) has no score, which this objective reads; "
            "give every response one, or choose another stage2.objective"
        )
    return response.score
