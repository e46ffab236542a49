"""Stage 1: likelihood of the chosen responses, with a regulariser on the rejected ones (paper, Eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cwdpo import losses
from cwdpo.devices import to_float64
from cwdpo.objectives.base import ObjectiveOutput, Tally, no_such_rows
from cwdpo.recipe import Stage1Section
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["SFTObjective"]


class SFTObjective:
    """SFT, or SFT-C: mean NLL(y⁺) + λ·ReLU(C − mean NLL(y⁻)) (Eq. 4).

    With `hinge_scope: global_batch` the ReLU stands outside a mean over the global batch, so whether it is on is known
    only after the last micro-batch: it is this objective's gate.
    """

    needs_reference = False
    tokenwise_reference = False
    twin_reference = False
    twin = None

    def __init__(self, settings: Stage1Section) -> None:
        self.settings = settings
        self.regularizer = settings.regularizer if settings.objective == "sft_c" else "none"
        hinged = self.regularizer in ("nll_floor", "nll_ceiling")
        self._penalty = losses.nll_ceiling_penalty if self.regularizer == "nll_ceiling" else losses.nll_floor_penalty
        self.gated = self.regularizer == "hard_constraint" or (hinged and settings.hinge_scope == "global_batch")

    def counts(self, batch: Batch) -> dict[str, float]:
        """Count chosen and rejected responses."""
        return {"chosen": float(len(batch.rows("chosen"))), "rejected": float(len(batch.rows("rejected")))}

    def gate(self, sums: Mapping[str, float], totals: Mapping[str, float]) -> bool | None:
        """Tell whether the constraint on the mean NLL of the negatives is violated."""
        if not self.gated:
            return None
        return totals["rejected"] > 0 and self._violated(sums["rejected_nll"] / totals["rejected"])

    def _violated(self, nll_rejected: float) -> bool:
        limit = self.settings.nll_floor
        return nll_rejected > limit if self.regularizer == "nll_ceiling" else nll_rejected < limit

    def _signed(self, nll: Tensor) -> Tensor:
        """C − NLL for the floor, NLL − C for the ceiling: positive where the constraint is violated."""
        difference = self.settings.nll_floor - nll
        return -difference if self.regularizer == "nll_ceiling" else difference

    def __call__(
        self, batch: Batch, scores: Scores, reference: Tensor | None, totals: Mapping[str, float], gate: bool | None
    ) -> ObjectiveOutput:
        """Compute the micro-batch's share of Eq. 4. See `Objective.__call__`."""
        s = self.settings
        if not totals["chosen"]:
            raise no_such_rows(batch, "chosen response")
        chosen, rejected = batch.rows("chosen"), batch.rows("rejected")
        nll = losses.nll(scores.logp_sum, scores.tokens, reduction=s.nll_reduction)
        positive, negative = nll[chosen], nll[rejected]
        tally = Tally()
        tally.add("nll/chosen", positive)
        tally.add("nll/rejected", negative)
        tally.add("logps/chosen", scores.logp_sum[chosen])
        tally.add("logps/rejected", scores.logp_sum[rejected])
        tally.add("entropy", scores.entropy[chosen][scores.mask[chosen]])
        tally.add("mean_token_accuracy", scores.correct[chosen][scores.mask[chosen]].float())
        if self.regularizer == "label_smoothing":
            uniform = losses.nll(scores.uniform.sum(-1), scores.tokens, reduction=s.nll_reduction)
            positive = losses.label_smoothed_nll(positive, uniform[chosen], epsilon=s.epsilon)
            tally.add("nll/smoothed", positive)
        likelihood = positive.sum() / totals["chosen"]
        sums = {"rejected_nll": to_float64(negative.detach()).sum()}
        if self.regularizer == "hard_constraint" and gate and totals["rejected"]:
            # Every micro-batch leaves its likelihood out, also one without negatives: 0 · likelihood keeps the graph.
            violation = self._signed(negative).sum() / totals["rejected"]
            tally.add("sft_c/active", negative.new_full((len(rejected),), 1.0))
            return ObjectiveOutput(violation + 0.0 * likelihood, tally, sums)
        if not rejected or self.regularizer in ("none", "label_smoothing"):
            return ObjectiveOutput(likelihood, tally, sums)
        if self.regularizer == "entropy":
            entropy = scores.mean_over_tokens(scores.entropy)[rejected]
            tally.add("entropy/rejected", entropy)
            return ObjectiveOutput(likelihood - s.weight * entropy.sum() / totals["rejected"], tally)
        if not self.gated:
            penalty = self._penalty(negative, s.nll_floor)
            tally.add("sft_c/penalty", penalty)
            tally.add("sft_c/active", (penalty > 0).float())
            return ObjectiveOutput(likelihood + s.weight * penalty.sum() / totals["rejected"], tally)
        if gate is not None:
            tally.add("sft_c/active", negative.new_full((len(rejected),), float(gate)))
        if not gate or self.regularizer == "hard_constraint":
            return ObjectiveOutput(likelihood, tally, sums)
        violation = self._signed(negative).sum() / totals["rejected"]
        return ObjectiveOutput(likelihood + s.weight * violation, tally, sums)

    def value(self, means: Mapping[str, float]) -> float:
        """Return Eq. 4 over a whole data set, from the means over its responses."""
        s = self.settings
        likelihood = means.get("nll/smoothed", means["nll/chosen"])
        if "nll/rejected" not in means or self.regularizer in ("none", "label_smoothing"):
            return likelihood
        if self.regularizer == "entropy":
            return likelihood - s.weight * means["entropy/rejected"]
        if not self.gated:
            return likelihood + s.weight * means["sft_c/penalty"]
        violated = self._violated(means["nll/rejected"])
        violation = abs(s.nll_floor - means["nll/rejected"]) if violated else 0.0
        if self.regularizer == "hard_constraint":
            return violation if violated else likelihood
        return likelihood + s.weight * violation
