"""Stage 1: likelihood of the chosen responses, with a penalty on the rejected ones (paper, Eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cwdpo.devices import to_float64
from cwdpo.methods.sft import SFT, ResponseLogps
from cwdpo.methods.sft_c import SFTC
from cwdpo.objectives.objective import Objective, ObjectiveOutput, Tally, no_such_rows
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["SFTObjective"]


class SFTObjective(Objective):
    """Mean of a method's loss over the chosen responses, plus λ times that of its penalty over the rejected ones."""

    requires = "chosen"
    twin_reference = False

    def __init__(self, method: SFT) -> None:
        self.method = method
        self._penalised = method if isinstance(method, SFTC) and method.penalised else None
        self.gated = self._penalised is not None and self._penalised.gated

    def counts(self, batch: Batch) -> dict[str, float]:
        """Count chosen and rejected responses."""
        return {"chosen": float(len(batch.rows("chosen"))), "rejected": float(len(batch.rows("rejected")))}

    def gate(self, sums: Mapping[str, float], totals: Mapping[str, float]) -> bool:
        """Tell whether the constraint on the mean NLL of the negatives is violated."""
        return totals["rejected"] > 0 and self._violation(sums["rejected_nll"] / totals["rejected"]) > 0

    def _violation(self, mean_nll: float) -> float:
        assert self._penalised is not None
        return self._penalised.violation(mean_nll)

    def __call__(
        self, batch: Batch, scores: Scores, reference: Tensor | None, totals: Mapping[str, float], gate: bool | None
    ) -> ObjectiveOutput:
        """Compute the micro-batch's share of Eq. 4. See `Objective.__call__`."""
        if not totals["chosen"]:
            raise no_such_rows(batch, "chosen response")
        chosen, rejected = batch.rows("chosen"), batch.rows("rejected")
        responses = ResponseLogps(
            logp=scores.logp_sum,
            tokens=scores.tokens,
            uniform=scores.uniform.sum(-1),
            entropy=scores.mean_over_tokens(scores.entropy),
        )
        m, penalised, tally = self.method, self._penalised, Tally()
        losses = m.loss(responses[chosen])
        nll = m.nll(responses.logp, responses.tokens).detach()
        tally.add("nll/chosen", nll[chosen])
        tally.add("nll/rejected", nll[rejected])
        tally.add("logps/chosen", scores.logp_sum[chosen])
        tally.add("logps/rejected", scores.logp_sum[rejected])
        tally.add("entropy", scores.entropy[chosen][scores.mask[chosen]])
        tally.add("mean_token_accuracy", scores.correct[chosen][scores.mask[chosen]].float())
        if m.loss_metric != "nll/chosen":
            tally.add(m.loss_metric, losses)
        likelihood = losses.sum() / totals["chosen"]
        if penalised is None or not totals["rejected"]:
            return ObjectiveOutput(likelihood, tally)
        sums = {"rejected_nll": to_float64(nll[rejected]).sum()}
        penalties = penalised.penalty(responses[rejected])
        if penalised.gated:
            if rejected and gate is not None:
                tally.add("sft_c/active", nll.new_full((len(rejected),), float(gate)))
            if not gate:
                return ObjectiveOutput(likelihood, tally, sums)
            violation = penalties.sum() / totals["rejected"]
            if penalised.replaces_loss:  # 0 · likelihood keeps the graph of a micro-batch without negatives
                return ObjectiveOutput(violation + 0.0 * likelihood, tally, sums)
            return ObjectiveOutput(likelihood + penalised.weight * violation, tally, sums)
        if penalised.regularizer == "entropy":
            tally.add("entropy/rejected", -penalties)
        else:
            tally.add("sft_c/penalty", penalties)
            tally.add("sft_c/active", (penalties > 0).float())
        return ObjectiveOutput(likelihood + penalised.weight * penalties.sum() / totals["rejected"], tally)

    def value(self, means: Mapping[str, float]) -> float:
        """Return Eq. 4 over a whole data set, from the means over its responses."""
        likelihood, penalised = means[self.method.loss_metric], self._penalised
        if penalised is None or "nll/rejected" not in means:
            return likelihood
        if not penalised.gated:
            penalty = means["sft_c/penalty"] if "sft_c/penalty" in means else -means["entropy/rejected"]
            return likelihood + penalised.weight * penalty
        violation = max(0.0, self._violation(means["nll/rejected"]))
        if penalised.replaces_loss:
            return violation or likelihood
        return likelihood + penalised.weight * violation
