"""Stage 2: any method on pairs of a chosen and a rejected response; its metrics are derived here, once for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cwdpo.data.alterations import Alteration
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import DataError, RecipeError
from cwdpo.methods.base import Method, coefficients
from cwdpo.methods.cooling import Cooling, cooling_weight
from cwdpo.methods.pair_logps import AlteredLogps, CutLogps, PairLogps, SpanLogps
from cwdpo.objectives.objective import Objective, ObjectiveOutput, Tally, no_such_rows
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["PreferenceObjective", "Twins", "altered_rows", "differing_span", "pair_logps", "span_mask"]


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
        scale = self.method.reward_scale
        # Implicit rewards are β·Δ, or β·ℓ̄ without a reference, as in TRL.
        shifts = (pairs.chosen_shift, pairs.rejected_shift)
        means = (pairs.chosen_mean, pairs.rejected_mean)
        reward_chosen, reward_rejected = (scale * values for values in (shifts if self.needs_reference else means))
        tally.add("rewards/chosen", reward_chosen)
        tally.add("rewards/rejected", reward_rejected)
        tally.add("rewards/accuracies", (reward_chosen > reward_rejected).float())
        tally.add("rewards/margins", reward_chosen - reward_rejected)
        tally.add("logps/chosen", pairs.chosen)
        tally.add("logps/rejected", pairs.rejected)
        if pairs.altered is not None and self.twin_reference:
            tally.add("rewards/altered", scale * pairs.altered.chosen_shift)
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


def differing_span(winner: Sequence[int], loser: Sequence[int]) -> tuple[int, int]:
    """Return the tokens of `loser` from the first to the last in which it differs from `winner`.

    What both begin with and what both end with is left out. Where that leaves nothing of the loser (it lacks something,
    or is the same) the span is one token: the first that is not the winner's at its place, or the last.

    Returns:
        (start, end) in the loser, end excluded and above start.
    """
    shorter = min(len(winner), len(loser))
    start = next((i for i in range(shorter) if winner[i] != loser[i]), shorter)
    tail = next((i for i in range(shorter - start) if winner[-1 - i] != loser[-1 - i]), shorter - start)
    end = len(loser) - tail
    if start < end:
        return start, end
    start = min(start, len(loser) - 1)
    return start, start + 1


def span_mask(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int) -> Tensor:
    """Return `Bool[pairs, width]`: true at the tokens of each loser that differ from its winner."""
    mask = torch.zeros((len(pairs), width), dtype=torch.bool)
    for row, (winner, loser) in enumerate(pairs):
        start, end = differing_span(winner, loser)
        mask[row, start:end] = True
    return mask


_ALTERED = "altered_"


@dataclass(frozen=True)
class Twins:
    """Gives a prompt its twin. Crops and masks depend on the seed and the row alone: every epoch sees the same.

    Attributes:
        kind: What is done to the images.
        roles: Which responses the twin has.
        seed: The run's.
    """

    kind: Literal["crop", "blank", "mask"]
    roles: tuple[str, ...]
    seed: int = 0

    def __call__(self, group: PromptGroup) -> PromptGroup:
        """Return the twin.

        Raises:
            DataError: The prompt has no image.
        """
        if not group.images:
            raise DataError(
                f"{group.origin or group.id}: has no image, and this objective compares with an altered one; "
                "leave the row out or choose another stage2.objective"
            )
        images = tuple(
            replace(image, altered=Alteration(self.kind, "" if self.kind == "blank" else f"{self.seed}/{group.id}/{i}"))
            for i, image in enumerate(group.images)
        )
        responses = [replace(r, role=_ALTERED + r.role) for r in group.responses if r.role in self.roles]
        return replace(group.with_responses(responses), images=images)


def altered_rows(batch: Batch, rows: Sequence[int]) -> list[int]:
    """Return for each row the row of the same response under the altered image."""
    responses, owner = batch.responses, batch.owner
    own = [i for i, group in enumerate(batch.groups) if not group.altered]
    twins = [i for i, group in enumerate(batch.groups) if group.altered]
    assert [batch.groups[i].id for i in own] == [batch.groups[i].id for i in twins]
    twin_of = dict(zip(own, twins, strict=True))
    places = {(owner[i], r.role, r.ids): i for i, r in enumerate(responses) if batch.groups[owner[i]].altered}
    return [places[twin_of[owner[i]], _ALTERED + responses[i].role, responses[i].ids] for i in rows]
