"""Stage 1's objective by hand: Eq. 4, every regulariser, both reductions, both scopes of the hinge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cwdpo.errors import DataError
from cwdpo.methods import SFT, SFTC, Method
from cwdpo.objectives.likelihood import SFTObjective
from cwdpo.objectives.objective import ObjectiveOutput
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse, Scores

# Two prompts. Log-probabilities per token and their lengths:
#   chosen   A: −1, −3            mean NLL 2   sum 4
#   rejected A: −2, −2, −2        mean NLL 2   sum 6
#   chosen   B: −4                mean NLL 4   sum 4
#   rejected B: −7, −9            mean NLL 8   sum 16
# Mean over chosen: 3 (sum form 4). Mean over rejected: 5 (sum form 11).
LOGPS = [[-1.0, -3.0], [-2.0, -2.0, -2.0], [-4.0], [-7.0, -9.0]]
ROLES = ["chosen", "rejected", "chosen", "rejected"]
ENTROPY = [[1.0, 2.0], [0.5, 1.5, 1.0], [3.0], [2.0, 4.0]]
"""Mean over the tokens of a rejected response: A 1, B 3; over all chosen tokens: (1 + 2 + 3)/3 = 2."""
UNIFORM = [[-6.0, -8.0], [-5.0, -5.0, -5.0], [-9.0], [-5.0, -5.0]]
"""−mean over the chosen responses' tokens: A 7, B 9."""


def batch_of(keep: list[int] | None = None) -> tuple[Batch, Scores]:
    """Responses 0 and 1 belong to prompt A, 2 and 3 to B; `keep` takes some of them."""
    rows = [0, 1, 2, 3] if keep is None else keep
    groups = []
    for name, members in (("A", (0, 1)), ("B", (2, 3))):
        mine = tuple(
            EncodedResponse(tuple(range(len(LOGPS[i]))), ROLES[i], "dataset", None, f"{name}{i}")
            for i in members
            if i in rows
        )
        if mine:
            groups.append(EncodedGroup(name, f"rows.jsonl:{name}", (1, 2), {}, {}, mine))

    def table(values: list[list[float]]) -> torch.Tensor:
        return torch.tensor([values[i] + [0.0] * (3 - len(values[i])) for i in rows])

    mask = torch.tensor([[c < len(LOGPS[i]) for c in range(3)] for i in rows])
    logps = table(LOGPS).requires_grad_()
    right = mask & (torch.arange(3) == 0)
    scores = Scores(logps, mask, table(ENTROPY).requires_grad_(), table(UNIFORM).requires_grad_(), mask * 0.5, right)
    return Batch(tuple(groups)), scores


def loss_of(found: ObjectiveOutput) -> float:
    return float(found.loss.detach())


def slope(scores: Scores, row: int) -> list[float]:
    """∂loss/∂log p of the tokens of one response."""
    assert scores.logps.grad is not None
    return scores.logps.grad[row][scores.mask[row]].tolist()


def evaluate(
    keep: list[int] | None = None, gate: bool | str | None = "decide", method: Method | None = None, **settings: Any
) -> Any:
    """Loss with the gate as the objective decides it, and the objective."""
    objective = SFTObjective(SFTC(**settings) if method is None else method)
    batch, scores = batch_of(keep)
    totals = objective.counts(batch)
    if gate == "decide":
        trial = objective(batch, scores, None, totals, True)
        gate = objective.gate({n: float(v) for n, v in trial.sums.items()}, totals) if objective.gated else None
    found = objective(batch, scores, None, totals, bool(gate) if gate is not None else None)
    return found, objective, scores


def test_sft() -> None:
    """Mean of 2 and 4."""
    assert loss_of(evaluate(method=SFT())[0]) == 3.0


def test_floor_on() -> None:
    """Eq. 4: 3 + 0.1·ReLU(6 − 5) = 3.1. The hinge's gradient is −λ/(negatives·length) per rejected token's NLL.

    ∂/∂ log p of a token of rejected A: +0.1/(2·3); of rejected B: +0.1/(2·2): both are pushed down.
    """
    found, objective, scores = evaluate(nll_floor=6.0, weight=0.1)
    assert loss_of(found) == pytest.approx(3.1)
    found.loss.backward()
    assert slope(scores, 1) == pytest.approx([0.1 / 6] * 3)
    assert slope(scores, 3) == pytest.approx([0.1 / 4] * 2)
    assert slope(scores, 0) == pytest.approx([-0.25, -0.25])
    assert found.tally.means()["sft_c/active"] == 1.0
    assert objective.value(found.tally.means()) == pytest.approx(3.1)


def test_floor_off() -> None:
    """C = 5 is met exactly: ReLU(0) = 0, and the negatives get no gradient."""
    found, objective, scores = evaluate(nll_floor=5.0)
    assert loss_of(found) == 3.0
    found.loss.backward()
    assert slope(scores, 1) == [0.0] * 3
    assert found.tally.means()["sft_c/active"] == 0.0
    assert objective.value(found.tally.means()) == 3.0


def test_scope_of_the_hinge() -> None:
    """C = 4: the mean NLL of the negatives is 5, the hinge on the batch is off; on examples it is on for A alone.

    mean(ReLU(4 − 2), ReLU(4 − 8)) = 1, so 3 + 0.1·1 = 3.1, with a share of 0.5 active.
    """
    assert loss_of(evaluate(nll_floor=4.0)[0]) == 3.0
    found, objective, _ = evaluate(nll_floor=4.0, hinge_scope="example")
    assert loss_of(found) == pytest.approx(3.1)
    assert found.tally.means()["sft_c/active"] == 0.5
    assert objective.value(found.tally.means()) == pytest.approx(3.1)


def test_sum_form_is_never_active() -> None:
    """With summed NLL the same C = 6 is far below 11: 4 + 0, and the logged share says so; C = 12 gives 4 + 0.1·1."""
    found, objective, _ = evaluate(nll_floor=6.0, nll_reduction="sum")
    assert loss_of(found) == 4.0
    assert found.tally.means()["sft_c/active"] == 0.0
    found, objective, _ = evaluate(nll_floor=12.0, nll_reduction="sum")
    assert loss_of(found) == pytest.approx(4.1)
    assert found.tally.means()["sft_c/active"] == 1.0
    assert objective.value(found.tally.means()) == pytest.approx(4.1)


def test_ceiling() -> None:
    """The prose's reading: 3 + 0.1·ReLU(5 − 4) = 3.1; with C = 6 it is met."""
    found, objective, scores = evaluate(regularizer="nll_ceiling", nll_floor=4.0)
    assert loss_of(found) == pytest.approx(3.1)
    assert objective.value(found.tally.means()) == pytest.approx(3.1)
    found.loss.backward()
    assert slope(scores, 1) == pytest.approx([-0.1 / 6] * 3)  # pulled up
    assert loss_of(evaluate(regularizer="nll_ceiling", nll_floor=6.0)[0]) == 3.0
    example, _, _ = evaluate(regularizer="nll_ceiling", nll_floor=6.0, hinge_scope="example")
    assert loss_of(example) == pytest.approx(3.1)  # mean(0, 8 − 6) = 1


def test_entropy() -> None:
    """3 − 0.1·mean(1, 3) = 2.8."""
    found, objective, scores = evaluate(regularizer="entropy")
    assert loss_of(found) == pytest.approx(2.8)
    assert objective.value(found.tally.means()) == pytest.approx(2.8)
    found.loss.backward()
    assert scores.entropy.grad is not None
    assert scores.entropy.grad[3].tolist() == pytest.approx([-0.1 / 4, -0.1 / 4, 0.0])


def test_label_smoothing() -> None:
    """Chosen A: 0.9·2 + 0.1·7 = 2.5; chosen B: 0.9·4 + 0.1·9 = 4.5; mean 3.5. Negatives play no part."""
    found, objective, scores = evaluate(regularizer="label_smoothing", epsilon=0.1)
    assert loss_of(found) == pytest.approx(3.5)
    assert objective.value(found.tally.means()) == pytest.approx(3.5)
    found.loss.backward()
    assert slope(scores, 1) == [0.0] * 3


def test_hard_constraint() -> None:
    """C = 6 is violated by 1: the loss is that 1 and the chosen responses get no gradient. With C = 5 it is SFT."""
    found, objective, scores = evaluate(regularizer="hard_constraint", nll_floor=6.0)
    assert loss_of(found) == pytest.approx(1.0)
    assert objective.value(found.tally.means()) == pytest.approx(1.0)
    found.loss.backward()
    assert slope(scores, 0) == [0.0] * 2
    assert slope(scores, 1) == pytest.approx([1 / 6] * 3)
    assert loss_of(evaluate(regularizer="hard_constraint", nll_floor=5.0)[0]) == 3.0


def test_hard_constraint_holds_for_every_share() -> None:
    """A micro-batch without negatives leaves its likelihood out too while the constraint is violated elsewhere."""
    objective = SFTObjective(SFTC(regularizer="hard_constraint", nll_floor=6.0))
    totals = {"chosen": 2.0, "rejected": 2.0}
    shares = [objective(*batch_of(keep), None, totals, True).loss for keep in ([0], [1, 2], [3])]
    assert [float(s.detach()) for s in shares] == pytest.approx([0.0, 2.0, -1.0])  # 0, (6 − 2)/2, (6 − 8)/2
    assert all(s.requires_grad for s in shares)


@pytest.mark.parametrize("regularizer", ["nll_floor", "nll_ceiling", "entropy", "label_smoothing", "hard_constraint"])
def test_without_negatives(regularizer: str) -> None:
    """No negative, no penalty, no division by zero, whatever the gate was guessed to be."""
    want = 3.5 if regularizer == "label_smoothing" else 3.0
    for gate in (True, False, None):
        found, objective, _ = evaluate([0, 2], gate, regularizer=regularizer, nll_floor=6.0)
        assert loss_of(found) == pytest.approx(want)
        assert objective.value(found.tally.means()) == pytest.approx(want)
    assert not objective.gated or not objective.gate({"rejected_nll": 0.0}, {"chosen": 2.0, "rejected": 0.0})


def test_gate_is_decided_over_the_global_batch() -> None:
    """NLL sums 2 and 8 over 2 negatives: mean 5, below 6, not below 5; nothing to decide for other regularisers."""
    sums, totals = {"rejected_nll": 10.0}, {"chosen": 2.0, "rejected": 2.0}

    def gate(**settings: Any) -> bool | None:
        objective = SFTObjective(SFTC(**settings))
        return objective.gate(sums, totals) if objective.gated else None

    assert gate(nll_floor=6.0) is True
    assert gate(nll_floor=5.0) is False
    assert gate(nll_floor=4.0, regularizer="nll_ceiling") is True
    assert gate(nll_floor=6.0, regularizer="hard_constraint") is True
    assert gate(nll_floor=6.0, hinge_scope="example") is None
    assert not SFTObjective(SFT()).gated
    assert gate(regularizer="entropy") is None
    assert gate(regularizer="label_smoothing") is None


def test_metrics() -> None:
    """Token means go over tokens, not over responses; the first token of each response is right, 2 of 3 chosen."""
    means = evaluate()[0].tally.means()
    assert means["nll/chosen"] == 3.0
    assert means["nll/rejected"] == 5.0
    assert means["logps/chosen"] == -4.0
    assert means["logps/rejected"] == -11.0
    assert means["entropy"] == 2.0
    assert means["mean_token_accuracy"] == pytest.approx(2 / 3)


def test_evaluation_does_not_guess() -> None:
    """In evaluation the gate is unknown batch by batch: `value` decides from the means, nothing claims to be active."""
    found, objective, _ = evaluate(None, None, nll_floor=6.0)
    assert "sft_c/active" not in found.tally.means()
    assert objective.value(found.tally.means()) == pytest.approx(3.1)


def test_no_chosen_response() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:A, rows\.jsonl:B: no row has a chosen response"):
        evaluate([1, 3], True)
