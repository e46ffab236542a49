"""The baselines' losses by hand, against autograd, and against what they are said to become."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.losses import PairLogps, cdpo, dpo, dpop, focal_dpo, focalpo, ipo, simpo, wpo
from pair_examples import (
    PairObjective,
    assert_coefficients_measured,
    close,
    doubles,
    example_pairs,
    make_pairs,
    pair_batches,
    unhurried,
)

BASELINES: dict[str, PairObjective] = {
    "cdpo": lambda pairs: cdpo(pairs, beta=0.3, label_smoothing=0.2),
    "ipo": lambda pairs: ipo(pairs, beta=0.3),
    "simpo": lambda pairs: simpo(pairs, beta=2.0, target_margin=0.7),
    "focal_dpo": lambda pairs: focal_dpo(pairs, beta=0.3, gamma=2.0),
    "focalpo": lambda pairs: focalpo(pairs, beta=0.3, gamma=0.5),
    "dpop": lambda pairs: dpop(pairs, beta=0.3, penalty=5.0),
    "wpo": lambda pairs: wpo(pairs, beta=0.3),
}
every_baseline = pytest.mark.parametrize("objective", BASELINES.values(), ids=BASELINES.keys())

# The three pairs of `example_pairs`: Δ_w = 1, 1, −5; Δ_l = −.5, −3, −60; DPO's m at β = .1 is .15, .4, 5.5.


def test_cdpo_by_hand():
    # ε = .2: .8·log(1 + e^−m) + .2·log(1 + e^m), and log(1 + e^m) = m + log(1 + e^−m): DPO's loss + .2·m.
    result = cdpo(example_pairs(), beta=0.1, label_smoothing=0.2)
    close(result.loss, 0.6209570 + 0.03, 0.5130153 + 0.08, 0.0040784 + 1.1)
    # β(1 − ε − σ(m)): σ(.15) = .5374298, σ(5.5) = .9959299 > .8: that pair pulls back.
    assert result.winner_coefficient[0].item() == pytest.approx(0.1 * (0.8 - 0.5374298), abs=1e-7)
    assert result.winner_coefficient[2].item() == pytest.approx(0.1 * (0.8 - 0.9959299), abs=1e-7)


def test_ipo_by_hand():
    # h = 1/5 + .5/6, 1/4 + 3/5, −5/10 + 60/12 = .2833333, .85, 4.5; target 1/(2·.5) = 1.
    result = ipo(example_pairs(), beta=0.5)
    close(result.margin, 0.2833333, 0.85, 4.5)
    close(result.loss, 0.5136111, 0.0225, 12.25)
    # 2(1 − h)/L: 1.4333333/5, .3/4, −7/10 and over 6, 5, 12.
    close(result.winner_coefficient, 0.2866667, 0.075, -0.7)
    close(result.loser_coefficient, 0.2388889, 0.06, -0.5833333)


def test_simpo_by_hand():
    # ℓ̄: −2 against −2, −2 against −4, −3 against −6. m = 2·(0, 2, 3) − 1 = −1, 3, 5.
    result = simpo(example_pairs(), beta=2.0, target_margin=1.0)
    close(result.margin, -1.0, 3.0, 5.0)
    # log(1 + e^1), log(1 + e^−3), log(1 + e^−5).
    close(result.loss, 1.3132617, 0.0485874, 0.0067153)
    # 2·σ(1)/5 = .2924234 and over 6.
    assert result.winner_coefficient[0].item() == pytest.approx(0.2924234, abs=1e-7)
    assert result.loser_coefficient[0].item() == pytest.approx(0.2436862, abs=1e-7)


def test_simpo_reads_no_reference():
    pairs = example_pairs()
    other = make_pairs(
        pairs.chosen,
        pairs.rejected,
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
        pairs.chosen_tokens,
        pairs.rejected_tokens,
    )
    assert torch.equal(simpo(pairs).loss, simpo(other).loss)


def test_the_two_focal_losses_by_hand():
    # p = σ(.15) = .5374298, −log p = .6209570: focal (1 − p)²·.6209570 = .2139712·.6209570; focalpo √p·.6209570.
    one, other = focal_dpo(example_pairs(), beta=0.1, gamma=2.0), focalpo(example_pairs(), beta=0.1, gamma=0.5)
    assert one.loss[0].item() == pytest.approx(0.1328669, abs=1e-6)
    assert other.loss[0].item() == pytest.approx(0.4552208, abs=1e-6)
    # Against DPO's pull, the first leaves less of a well-ranked pair (the third, p = .996), the second about all.
    plain = dpo(example_pairs(), beta=0.1).winner_coefficient
    assert one.winner_coefficient[2] < 0.01 * plain[2]
    assert other.winner_coefficient[2] > 0.99 * plain[2]


def test_focalpo_gives_up_on_badly_ranked_pairs():
    # m = −6: log p = −6.0025 < −1/γ = −2: 1 + γ log p = −2.0012, the pull is negative.
    pairs = make_pairs(*(doubles(v) for v in (-60.0, -10.0, 0.0, -10.0)), torch.tensor([9]), torch.tensor([9]))
    assert focalpo(pairs, beta=0.1, gamma=0.5).winner_coefficient.item() < 0
    assert focal_dpo(pairs, beta=0.1, gamma=0.5).winner_coefficient.item() > 0


def test_dpop_by_hand():
    # λ = 2, β = .1: only the third winner is below the reference: m = .1·(−5 + 60 − 2·5) = 4.5; coefficient ·3.
    result = dpop(example_pairs(), beta=0.1, penalty=2.0)
    close(result.margin, 0.15, 0.4, 4.5)
    assert result.loss[2].item() == pytest.approx(math.log1p(math.exp(-4.5)))
    close(result.winner_coefficient / result.loser_coefficient, 1.0, 1.0, 3.0)


def test_wpo_by_hand():
    # exp(−2 − 2), exp(−2 − 4), exp(−3 − 6) times DPO's loss.
    result = wpo(example_pairs(), beta=0.1)
    close(result.loss, 0.6209570 * math.exp(-4), 0.5130153 * math.exp(-6), 0.0040784 * math.exp(-9))


@every_baseline
def test_reported_coefficients_are_the_gradient(objective: PairObjective):
    pairs = example_pairs()
    result = objective(pairs)
    assert_coefficients_measured(pairs, result)
    for name in ("margin", "weight", "winner_coefficient", "loser_coefficient"):
        assert not getattr(result, name).requires_grad, name
        assert getattr(result, name).shape == (3,)


@unhurried
@given(pair_batches())
def test_reported_coefficients_are_the_gradient_anywhere(pairs: PairLogps):
    for objective in BASELINES.values():
        assert_coefficients_measured(pairs, objective(pairs))


@unhurried
@given(pair_batches(), st.floats(0.05, 2.0))
def test_each_becomes_dpo(pairs: PairLogps, beta: float):
    plain = dpo(pairs, beta=beta)
    for result in (
        cdpo(pairs, beta=beta, label_smoothing=0.0),
        focal_dpo(pairs, beta=beta, gamma=0.0),
        focalpo(pairs, beta=beta, gamma=0.0),
        dpop(pairs, beta=beta, penalty=0.0),
    ):
        for name in ("loss", "margin", "winner_coefficient", "loser_coefficient"):
            torch.testing.assert_close(getattr(result, name), getattr(plain, name))


@every_baseline
def test_far_margins_stay_finite_in_float32(objective: PairObjective):
    pairs = make_pairs(
        torch.tensor([-1.0, -2001.0], requires_grad=True),
        torch.tensor([-2001.0, -1.0], requires_grad=True),
        torch.tensor([-2001.0, -1.0]),
        torch.tensor([-1.0, -2001.0]),
        torch.tensor([10, 10]),
        torch.tensor([10, 10]),
    )
    result = objective(pairs)
    gradients = torch.autograd.grad(result.loss.sum(), [pairs.chosen, pairs.rejected])
    assert all(torch.isfinite(t).all() for t in (result.loss, result.winner_coefficient, *gradients))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pairs: cdpo(pairs, label_smoothing=0.5), "label_smoothing = 0.5: must be at least 0 and below 0.5"),
        (lambda pairs: ipo(pairs, beta=0.0), "beta = 0.0: must be finite and above 0"),
        (lambda pairs: simpo(pairs, target_margin=-1.0), "target_margin = -1.0: must be finite and at least 0"),
        (lambda pairs: focal_dpo(pairs, gamma=-1.0), "gamma = -1.0: must be finite and at least 0"),
        (lambda pairs: focalpo(pairs, gamma=math.nan), "gamma = nan: must be finite and at least 0"),
        (lambda pairs: dpop(pairs, penalty=-1.0), "penalty = -1.0: must be finite and at least 0"),
        (lambda pairs: wpo(pairs, beta=-1.0), "beta = -1.0: must be finite and above 0"),
    ],
)
def test_refusals(call: Callable[[PairLogps], object], message: str):
    with pytest.raises(ValueError) as caught:
        call(example_pairs())
    assert str(caught.value) == message
