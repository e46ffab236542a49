"""Stage 2's objective by hand: which pairs, which mean, which numbers are logged."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cwdpo.errors import DataError
from cwdpo.methods import CWDPO, DPO, RPO, DPOShift, Method
from cwdpo.objectives.objective import Tally
from cwdpo.objectives.preference import PreferenceObjective
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse, Scores

# Prompt A: chosen −1, −1 (sum −2); rejected hard −2, −2 (sum −4, mean −2); rejected easy −5 (mean −5).
# Prompt B: chosen −3 (sum −3); rejected without a tag −3, −1 (sum −4, mean −2).
ROWS: list[tuple[str, str, str | None, list[float], float]] = [
    ("A", "chosen", None, [-1.0, -1.0], -3.0),
    ("A", "rejected", "hard", [-2.0, -2.0], -3.0),
    ("A", "rejected", "easy", [-5.0], -1.0),
    ("B", "chosen", None, [-3.0], -3.0),
    ("B", "rejected", None, [-3.0, -1.0], -5.0),
]
"""Prompt, role, difficulty, log-probabilities, reference sum. Shifts: A +1; hard −1; easy −4; B 0; +1."""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def made(rows: list[Any] = ROWS) -> tuple[Batch, Scores, torch.Tensor]:
    groups = [
        EncodedGroup(
            name,
            f"rows.jsonl:{name}",
            (1,),
            {},
            {},
            tuple(
                EncodedResponse(tuple(range(len(logps))), role, "dataset", tag, f"{name}{tag}")
                for owner, role, tag, logps, _ in rows
                if owner == name
            ),
        )
        for name in sorted({row[0] for row in rows})
    ]
    mask = torch.tensor([[c < len(row[3]) for c in range(2)] for row in rows])
    logps = torch.tensor([row[3] + [0.0] * (2 - len(row[3])) for row in rows]).requires_grad_()
    entropy = torch.arange(1.0, len(rows) + 1)[:, None] * mask
    scores = Scores(logps, mask, entropy, logps.detach(), mask * 0.5, mask & (torch.arange(2) == 0))
    return Batch(tuple(groups)), scores, torch.tensor([row[4] for row in rows])


def run(method: Method) -> tuple[float, dict[str, float], PreferenceObjective]:
    objective = PreferenceObjective(method)
    batch, scores, reference = made()
    found = objective(batch, scores, reference, objective.counts(batch), None)
    return float(found.loss.detach()), found.tally.means(), objective


def test_pairs() -> None:
    """Three pairs: every rejected response with the chosen one of its prompt."""
    batch, _, _ = made()
    assert batch.pairs() == ([0, 0, 3], [1, 2, 4])
    assert PreferenceObjective(CWDPO()).counts(batch) == {"pairs": 3.0}


def test_dpo() -> None:
    """β = 0.5, margins 0.5·(1 + 1) = 1, 0.5·(1 + 4) = 2.5, 0.5·(0 − 1) = −0.5; loss: mean of log(1 + e^−m)."""
    loss, means, objective = run(DPO(beta=0.5))
    want = sum(math.log1p(math.exp(-m)) for m in (1.0, 2.5, -0.5)) / 3
    assert loss == pytest.approx(want, rel=1e-6)
    assert objective.value(means) == pytest.approx(want, rel=1e-6)
    assert means["rewards/chosen"] == pytest.approx(0.5 * (1 + 1 + 0) / 3)
    assert means["rewards/rejected"] == pytest.approx(0.5 * (-1 - 4 + 1) / 3)
    assert means["rewards/margins"] == pytest.approx((1.0 + 2.5 - 0.5) / 3)
    assert means["rewards/accuracies"] == pytest.approx(2 / 3)
    assert means["logps/chosen"] == pytest.approx((-2 - 2 - 3) / 3)
    assert means["logps/rejected"] == pytest.approx((-4 - 5 - 4) / 3)


def test_cw_dpo() -> None:
    """Floor −3, τ = 1: ℓ̄ −2, −5, −2 weigh σ(1), σ(−2), σ(1). m′ = β(Δ_w − w·Δ_l), β = 0.5."""
    loss, means, _ = run(CWDPO(beta=0.5))
    weights = [sigmoid(1), sigmoid(-2), sigmoid(1)]
    margins = [0.5 * (1 + weights[0]), 0.5 * (1 + 4 * weights[1]), 0.5 * (0 - weights[2])]
    assert loss == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3, rel=1e-6)
    pull = [0.5 * sigmoid(-m) for m in margins]
    assert means["cooling/weight"] == pytest.approx(sum(weights) / 3, rel=1e-6)
    assert means["cooling/weight/hard"] == pytest.approx(weights[0], rel=1e-6)
    assert means["cooling/weight/easy"] == pytest.approx(weights[1], rel=1e-6)
    assert means["cooling/winner_coefficient"] == pytest.approx(sum(pull) / 3, rel=1e-6)
    assert means["cooling/loser_coefficient/easy"] == pytest.approx(weights[1] * pull[1], rel=1e-6)
    assert means["cooling/rejected_logp_mean/hard"] == -2.0
    assert "cooling/weight/medium" not in means


@pytest.mark.parametrize("method", [DPO(), CWDPO(), CWDPO(detach=False), DPOShift(), RPO(sft_weight=0.7)])
def test_logged_coefficients_are_the_gradient(method: Method) -> None:
    """−∂loss/∂log π(y_w) = winner coefficient / pairs, ∂loss/∂log π(y_l) = loser coefficient / pairs (B's one pair)."""
    rows = [row for row in ROWS if row[0] == "B"]
    batch, scores, reference = made(rows)
    found = PreferenceObjective(method)(batch, scores, reference, {"pairs": 4.0}, None)
    found.loss.backward()
    means = found.tally.means()
    assert scores.logps.grad is not None
    winner, loser = scores.logps.grad
    assert float(winner[0]) == pytest.approx(-means["cooling/winner_coefficient"] / 4, rel=1e-5)
    assert loser.tolist() == pytest.approx([means["cooling/loser_coefficient"] / 4] * 2, rel=1e-5)


def test_token_metrics() -> None:
    """Entropy over the tokens of all responses, each counted once; accuracy over chosen tokens, as in TRL.

    Row r has entropy r + 1 at each token: (2·1 + 2·2 + 1·3 + 1·4 + 2·5)/8 = 23/8; chosen (2·1 + 1·4)/3 = 2.
    The first token of each response is right: 2 of 3 chosen tokens.
    """
    means = run(DPO())[1]
    assert means["entropy"] == pytest.approx(23 / 8)
    assert means["entropy/chosen"] == pytest.approx(2.0)
    assert means["mean_token_accuracy"] == pytest.approx(2 / 3)


def test_reference_has_no_say_without_a_pair() -> None:
    rows = [row for row in ROWS if row[1] == "chosen"]
    batch, scores, reference = made(rows)
    objective = PreferenceObjective(CWDPO())
    with pytest.raises(DataError, match=r"rows\.jsonl:A, rows\.jsonl:B: no row has a chosen and a rejected response"):
        objective(batch, scores, reference, objective.counts(batch), None)
    share = objective(batch, scores, reference, {"pairs": 3.0}, None)  # other micro-batches have pairs
    assert float(share.loss.detach()) == 0.0
    assert share.loss.requires_grad


def test_tally_divides_once() -> None:
    """Sums and counts are merged: (1 + 2 + 6)/3, not the mean of 1.5 and 6."""
    one, other = Tally(), Tally()
    one.add("x", torch.tensor([1.0, 2.0]))
    other.add("x", torch.tensor([6.0]))
    other.add("y", torch.tensor([]))
    one.merge(other)
    assert one.means() == {"x": 3.0}
