"""Every loss against hand arithmetic, against autograd and against the properties its derivation promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cwdpo.losses import (
    PairLogps,
    PairLoss,
    cooling_weight,
    cw_dpo,
    dpo,
    dpo_shift,
    label_smoothed_nll,
    nll,
    nll_ceiling_penalty,
    nll_floor_penalty,
    rpo,
)
from pair_examples import (
    PairObjective,
    assert_coefficients_measured,
    close,
    doubles,
    example_pairs,
    far_pair,
    make_pairs,
    pair_batches,
    unhurried,
)

# Every pair loss in every mode: what holds for all of them is tested on all of them.
OBJECTIVES: dict[str, PairObjective] = {
    "dpo": lambda pairs: dpo(pairs, beta=0.3),
    "cw_dpo": lambda pairs: cw_dpo(pairs, beta=0.3),
    "cw_dpo attached": lambda pairs: cw_dpo(pairs, beta=0.3, detach=False),
    "cw_dpo w_min": lambda pairs: cw_dpo(pairs, beta=0.3, floor=-2.0, tau=0.5, w_min=0.2),
    "cw_dpo w_min attached": lambda pairs: cw_dpo(pairs, beta=0.3, floor=-2.0, tau=0.5, w_min=0.2, detach=False),
    "cw_dpo renormalised": lambda pairs: cw_dpo(pairs, beta=0.3, renormalise=True),
    "cw_dpo renormalised attached": lambda pairs: cw_dpo(pairs, beta=0.3, w_min=0.1, detach=False, renormalise=True),
    "dpo_shift": lambda pairs: dpo_shift(pairs, beta=0.3, weight=0.7),
    "rpo": lambda pairs: rpo(pairs, beta=0.3, alpha=1.5),
    "cw_dpo bounded": lambda pairs: cw_dpo(pairs, beta=0.3, bound_pull=True),
    "cw_dpo bounded renormalised attached": lambda pairs: cw_dpo(
        pairs, beta=0.3, bound_pull=True, renormalise=True, detach=False
    ),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


# --- The input -------------------------------------------------------------------------------------------------------


def test_pair_logps_shifts_and_means():
    pairs = example_pairs()
    # Δ_w: −10+11, −8+9, −30+25.  Δ_l: −12+11.5, −20+17, −72+12.
    assert pairs.chosen_shift.tolist() == [1.0, 1.0, -5.0]
    assert pairs.rejected_shift.tolist() == [-0.5, -3.0, -60.0]
    # ℓ̄: −10/5, −8/4, −30/10 and −12/6, −20/5, −72/12.
    assert pairs.chosen_mean.tolist() == [-2.0, -2.0, -3.0]
    assert pairs.rejected_mean.tolist() == [-2.0, -4.0, -6.0]


def test_a_column_that_would_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"reference_chosen: shape \(2, 1\), must be that of chosen, \(2,\)"):
        make_pairs(torch.zeros(2), torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), torch.ones(2), torch.ones(2))


def test_half_precision_is_refused():
    # bfloat16 has 8 significant bits: between 64 and 128 its numbers are half a nat apart.
    assert torch.tensor(-72.2, dtype=torch.bfloat16).item() == -72.0
    with pytest.raises(ValueError, match=r"rejected: dtype torch.bfloat16, must be torch.float32 or torch.float64"):
        make_pairs(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), *[torch.zeros(2)] * 4)


# --- Values ----------------------------------------------------------------------------------------------------------


@unhurried
@given(pair_batches())
def test_loss_is_log_2_where_policy_equals_reference(pairs: PairLogps):
    same = make_pairs(
        pairs.chosen,
        pairs.rejected,
        pairs.chosen.detach(),
        pairs.rejected.detach(),
        pairs.chosen_tokens,
        pairs.rejected_tokens,
    )
    for name, objective in OBJECTIVES.items():
        if name == "rpo":
            continue
        result = objective(same)
        if "bounded renormalised" in name:  # scaled down to DPO's pull
            assert (result.loss <= math.log(2)).all()
            continue
        torch.testing.assert_close(result.loss, torch.full_like(result.loss, math.log(2)))
        assert not result.margin.any()
    # RPO adds α times the mean NLL of the winner.
    torch.testing.assert_close(rpo(same, alpha=2.0).loss, math.log(2) - 2.0 * same.chosen_mean)


def test_dpo_by_hand():
    # m = .1·(1 + .5), .1·(1 + 3), .1·(−5 + 60) = .15, .4, 5.5; loss = log(1 + e^−m); coefficient = .1/(1 + e^m).
    result = dpo(example_pairs(), beta=0.1)
    torch.testing.assert_close(result.margin, doubles(0.15, 0.4, 5.5))
    close(result.loss, 0.6209570, 0.5130153, 0.0040784)
    close(result.winner_coefficient, 0.0462570, 0.0401312, 0.0004070)
    assert result.weight.tolist() == [1.0, 1.0, 1.0]


@unhurried
@given(pair_batches(), st.floats(0.01, 2.0))
def test_dpo_is_the_logistic_loss_of_its_margin(pairs: PairLogps, beta: float):
    result = dpo(pairs, beta=beta)
    for index in range(len(pairs.chosen)):
        shift_w = pairs.chosen[index].item() - pairs.reference_chosen[index].item()
        shift_l = pairs.rejected[index].item() - pairs.reference_rejected[index].item()
        margin = beta * (shift_w - shift_l)
        expected = max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
        assert result.loss[index].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cw_dpo_by_hand():
    # ℓ̄_l = −2, −4, −6 against the floor −3: w = σ(1), σ(−1), σ(−3) = .7310586, .2689414, .0474259.
    # m′ = .1·(1 + .5·.7310586), .1·(1 + 3·.2689414), .1·(−5 + 60·.0474259) = .1365529, .1806824, −.2154447.
    result = cw_dpo(example_pairs(), beta=0.1)
    close(result.weight, 0.7310586, 0.2689414, 0.0474259)
    close(result.margin, 0.1365529, 0.1806824, -0.2154447)
    # log(1 + e^−m′).
    close(result.loss, 0.6271998, 0.6068812, 0.8066604)


def test_dpo_shift_by_hand():
    # f = .5: m = .1·(1 + .25), .1·(1 + 1.5), .1·(−5 + 30) = .125, .25, 2.5.
    result = dpo_shift(example_pairs(), beta=0.1, weight=0.5)
    torch.testing.assert_close(result.margin, doubles(0.125, 0.25, 2.5))
    close(result.loss, 0.6325990, 0.5759394, 0.0788897)


def test_rpo_by_hand():
    # The DPO losses above plus 2 · (2, 2, 3) nats per token; the winner's coefficient plus 2 / (5, 4, 10).
    result = rpo(example_pairs(), beta=0.1, alpha=2.0)
    close(result.loss, 4.6209570, 4.5130153, 6.0040784)
    close(result.winner_coefficient, 0.4462570, 0.5401312, 0.2004070)


@every_objective
def test_far_margins_stay_finite_in_float32(objective: PairObjective):
    # Margins of ±.3·2000 and beyond: the loss is 0 or linear, never inf or NaN.
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
    assert all(torch.isfinite(tensor).all() for tensor in (result.loss, *gradients))
    assert result.loss.dtype == torch.float32


# --- The cooling weight ----------------------------------------------------------------------------------------------


def test_cooling_weight_is_a_half_at_the_floor_and_never_one():
    # The text says "→ 1 at or above the floor": it is σ(0) = .5 there, and σ(3) = .9525741 for a certain loser.
    weights = cooling_weight(doubles(-3.0, 0.0, -6.0))
    close(weights, 0.5, 0.9525741, 0.0474259)
    # τ = 2 halves the logit: σ(1.5) = .8175745.
    close(cooling_weight(doubles(0.0), tau=2.0), 0.8175745)


@unhurried
@given(st.floats(-50.0, 0.0), st.floats(-10.0, 0.0), st.floats(0.1, 5.0), st.floats(0.0, 1.0))
def test_cooling_weight_bounds(logp_mean: float, floor: float, tau: float, w_min: float):
    weight = cooling_weight(doubles(logp_mean), floor=floor, tau=tau, w_min=w_min).item()
    ceiling = w_min + (1 - w_min) / (1 + math.exp(floor / tau))
    assert w_min - 1e-12 <= weight <= ceiling + 1e-12


@unhurried
@given(st.floats(-20.0, -0.1), st.floats(0.0, 0.99))
def test_cooling_weight_rises_with_the_log_probability(logp_mean: float, w_min: float):
    low, high = cooling_weight(doubles(logp_mean, logp_mean + 0.1), w_min=w_min).tolist()
    assert low < high


def test_cooling_weight_lower_bound():
    # .2 + .8·σ(0) = .6 at the floor, → .2 far below it.
    torch.testing.assert_close(cooling_weight(doubles(-3.0, -1e4), w_min=0.2), doubles(0.6, 0.2))


def test_cooling_can_raise_the_loser_coefficient():
    # Over β: DPO has 1 − σ(.1·60) = 1 − σ(6) = .00247. CW: w = σ(−3) = .04743, m′ = .1·60·.04743 = .28456,
    # 1 − a′ = .42934, and w·(1 − a′) = .02036: eight times DPO's.
    pair = far_pair()
    assert dpo(pair, beta=0.1).loser_coefficient.item() / 0.1 == pytest.approx(0.00247, abs=5e-6)
    cooled = cw_dpo(pair, beta=0.1)
    assert cooled.loser_coefficient.item() / 0.1 == pytest.approx(0.02036, abs=5e-6)
    assert cooled.winner_coefficient.item() / 0.1 == pytest.approx(0.42934, abs=5e-6)


# --- Gradients -------------------------------------------------------------------------------------------------------


@every_objective
def test_reported_coefficients_are_those_of_autograd(objective: PairObjective):
    pairs = example_pairs()
    result = objective(pairs)
    assert_coefficients_measured(pairs, result)
    for name in ("margin", "weight", "winner_coefficient", "loser_coefficient"):
        assert not getattr(result, name).requires_grad, name
        assert getattr(result, name).shape == (3,)


@unhurried
@given(pair_batches())
def test_reported_coefficients_are_those_of_autograd_anywhere(pairs: PairLogps):
    for objective in OBJECTIVES.values():
        assert_coefficients_measured(pairs, objective(pairs))


# A detached factor is a constant to autograd and not to finite differences: those modes have the test after this one.
DIFFERENTIABLE = ["dpo", "cw_dpo attached", "cw_dpo w_min attached", "dpo_shift", "rpo"]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_numeric_gradient(name: str):
    pairs = example_pairs()

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        moved = make_pairs(
            chosen,
            rejected,
            pairs.reference_chosen,
            pairs.reference_rejected,
            pairs.chosen_tokens,
            pairs.rejected_tokens,
        )
        return OBJECTIVES[name](moved).loss

    assert torch.autograd.gradcheck(loss, (pairs.chosen, pairs.rejected))


@pytest.mark.parametrize("renormalise", [False, True])
def test_numeric_gradient_with_the_weight_frozen(renormalise: bool):
    pairs = example_pairs()
    result = cw_dpo(pairs, beta=0.3, renormalise=renormalise)
    step = 1e-5

    def frozen(chosen: Tensor, rejected: Tensor) -> Tensor:
        scale = 2 / (1 + result.weight) if renormalise else 1.0
        shift_w, shift_l = chosen - pairs.reference_chosen, rejected - pairs.reference_rejected
        return torch.log1p(torch.exp(-0.3 * scale * (shift_w - result.weight * shift_l)))

    chosen, rejected = pairs.chosen.detach(), pairs.rejected.detach()
    torch.testing.assert_close(result.loss.detach(), frozen(chosen, rejected))
    up_w = (frozen(chosen + step, rejected) - frozen(chosen - step, rejected)) / (2 * step)
    up_l = (frozen(chosen, rejected + step) - frozen(chosen, rejected - step)) / (2 * step)
    measured_w, measured_l = torch.autograd.grad(result.loss.sum(), [pairs.chosen, pairs.rejected])
    torch.testing.assert_close(measured_w, up_w, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(measured_l, up_l, rtol=1e-7, atol=1e-9)


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of a response whose every position has its own row of logits, `[1]`."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None]).sum()[None]


def test_gradient_with_respect_to_the_logits_is_the_last_form_of_eq_8():
    # Separate logits per response, 4 and 3 positions over 7 classes. The step −∇_z of a log-likelihood loss on y is
    # (y − π), so ∇_z loss = β(1−a′)(π − y_w) on the winner's positions and −w_c β(1−a′)(π − y_l) on the loser's.
    generator = torch.Generator().manual_seed(3)
    logits_w = torch.randn(4, 7, generator=generator, dtype=torch.float64).requires_grad_()
    logits_l = torch.randn(3, 7, generator=generator, dtype=torch.float64).requires_grad_()
    tokens_w, tokens_l = torch.tensor([1, 5, 0, 2]), torch.tensor([4, 4, 6])
    pairs = make_pairs(
        token_logps(logits_w, tokens_w),
        token_logps(logits_l, tokens_l),
        doubles(-9.0),
        doubles(-5.0),
        torch.tensor([4]),
        torch.tensor([3]),
    )
    result = cw_dpo(pairs, beta=0.2, floor=-2.0)
    weight = 1 / (1 + math.exp(-(pairs.rejected.item() / 3 + 2.0)))
    margin = 0.2 * ((pairs.chosen.item() + 9.0) - weight * (pairs.rejected.item() + 5.0))
    residual = 0.2 / (1 + math.exp(margin))  # β(1 − a′)
    gradient_w, gradient_l = torch.autograd.grad(result.loss.sum(), [logits_w, logits_l])
    one_hot = torch.nn.functional.one_hot
    torch.testing.assert_close(gradient_w, residual * (logits_w.softmax(-1) - one_hot(tokens_w, 7)).detach())
    torch.testing.assert_close(gradient_l, -residual * weight * (logits_l.softmax(-1) - one_hot(tokens_l, 7)).detach())


def test_shared_tokens_cancel_in_dpo_and_are_finetuned_by_cw_dpo():
    # One table of logits, row t for position t: y_w = 2 0 4 and y_l = 2 0 1 share two tokens and split at the third.
    # Shared rows: β(1−a′)[(π−y) − w(π−y)] = β(1−a′)(1−w)(π−y), hidden SFT; with w = 1 it is exactly nothing.
    generator = torch.Generator().manual_seed(11)
    table = torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    winner, loser = torch.tensor([2, 0, 4]), torch.tensor([2, 0, 1])

    def shared_gradient(objective: PairObjective) -> tuple[PairLoss, Tensor]:
        pairs = make_pairs(
            token_logps(table, winner),
            token_logps(table, loser),
            doubles(-4.0),
            doubles(-6.0),
            torch.tensor([3]),
            torch.tensor([3]),
        )
        result = objective(pairs)
        (gradient,) = torch.autograd.grad(result.loss.sum(), [table])
        return result, gradient

    _, plain = shared_gradient(lambda pairs: dpo(pairs, beta=0.2))
    torch.testing.assert_close(plain[:2], torch.zeros(2, 5, dtype=torch.float64))
    assert plain[2].abs().max() > 0.01

    result, cooled = shared_gradient(lambda pairs: cw_dpo(pairs, beta=0.2))
    residual = 0.2 * (1 - torch.sigmoid(result.margin))  # β(1 − a′)
    supervised = table.softmax(-1) - torch.nn.functional.one_hot(winner, 5)  # π − y
    expected = residual * (1 - result.weight) * supervised
    torch.testing.assert_close(cooled[:2], expected[:2].detach())
    assert cooled[:2].abs().max() > 1e-3


def test_attached_factor_and_its_sign_far_from_the_reference():
    # Δ_l = −60, L = 12, τ = 1, w = σ(−3) = .0474259: 1 + Δ_l(1 − w)/(τL) = 1 − 60·.9525741/12 = −3.7628706.
    pair = far_pair()
    detached = cw_dpo(pair, beta=0.1)
    attached = cw_dpo(pair, beta=0.1, detach=False)
    (gradient,) = torch.autograd.grad(attached.loss.sum(), [pair.rejected])
    assert (gradient / detached.loser_coefficient).item() == pytest.approx(-3.7628706, abs=5e-7)
    # Descent pulls such a loser up; near the reference (Δ_l = −.5) the factor is 1 − .5·.2689414/6 = .9775882.
    assert attached.loser_coefficient.item() < 0 < detached.loser_coefficient.item()
    near = example_pairs()
    ratio = cw_dpo(near, detach=False).loser_coefficient / cw_dpo(near).loser_coefficient
    assert ratio[0].item() == pytest.approx(0.9775882, abs=5e-7)
    # The value itself does not depend on the mode.
    torch.testing.assert_close(attached.loss, detached.loss, rtol=0, atol=0)


@unhurried
@given(pair_batches(), st.floats(0.1, 5.0))
def test_attached_factor_anywhere(pairs: PairLogps, tau: float):
    # w_min = 0: the two loser coefficients differ by 1 + Δ_l(1 − w)/(τL), cross-multiplied since both may vanish.
    detached = cw_dpo(pairs, tau=tau)
    attached = cw_dpo(pairs, tau=tau, detach=False)
    factor = 1 + pairs.rejected_shift * (1 - detached.weight) / (tau * pairs.rejected_tokens)
    torch.testing.assert_close(attached.loser_coefficient, (detached.loser_coefficient * factor).detach())
    torch.testing.assert_close(attached.winner_coefficient, detached.winner_coefficient)


# --- Options of ours -------------------------------------------------------------------------------------------------


def test_renormalise_by_hand():
    # w = σ(−3) = .0474259, scale 2/1.0474259 = 1.9094430: m′ = .1·1.9094430·(0 + 60·.0474259) = .5433434,
    # 1 − a′ = .3674103; winner .1·1.9094430·.3674103 = .0701549, loser .0474259 of it = .0033272; sum .0734821.
    result = cw_dpo(far_pair(), beta=0.1, renormalise=True)
    assert result.margin.item() == pytest.approx(0.5433434, abs=2e-6)
    assert result.winner_coefficient.item() == pytest.approx(0.0701549, abs=2e-6)
    assert result.loser_coefficient.item() == pytest.approx(0.0033272, abs=2e-6)


@unhurried
@given(pair_batches(), st.floats(0.0, 1.0))
def test_renormalise_gives_the_two_sides_what_dpo_gives_them(pairs: PairLogps, w_min: float):
    result = cw_dpo(pairs, beta=0.2, w_min=w_min, renormalise=True)
    total = result.winner_coefficient + result.loser_coefficient
    torch.testing.assert_close(total, 2 * 0.2 * torch.sigmoid(-result.margin))
    torch.testing.assert_close(result.loser_coefficient, result.weight * result.winner_coefficient)


@unhurried
@given(pair_batches(), st.booleans(), st.booleans())
def test_a_weight_of_one_is_dpo(pairs: PairLogps, detach: bool, renormalise: bool):
    plain = dpo(pairs, beta=0.2)
    for result in (
        cw_dpo(pairs, beta=0.2, w_min=1.0, detach=detach, renormalise=renormalise),
        dpo_shift(pairs, beta=0.2, weight=1.0),
        rpo(pairs, beta=0.2, alpha=0.0),
    ):
        for name in ("loss", "margin", "weight", "winner_coefficient", "loser_coefficient"):
            torch.testing.assert_close(getattr(result, name), getattr(plain, name), msg=lambda text, n=name: n + text)


def test_a_weight_of_zero_leaves_no_ranking_signal():
    # −log σ(βΔ_w): reference-anchored SFT, the loser gets no gradient at all.
    pairs = example_pairs()
    result = cw_dpo(pairs, beta=0.1, floor=1e4)
    torch.testing.assert_close(result.loss, -torch.nn.functional.logsigmoid(0.1 * pairs.chosen_shift))
    assert result.loser_coefficient.tolist() == [0.0, 0.0, 0.0]
    # A lower bound keeps it: .25 of the winner's coefficient.
    kept = cw_dpo(pairs, beta=0.1, floor=1e4, w_min=0.25)
    torch.testing.assert_close(kept.loser_coefficient, 0.25 * kept.winner_coefficient)


# --- Stage 1 ---------------------------------------------------------------------------------------------------------


def test_nll_per_sequence_or_per_token():
    # −18 nats over 12 tokens: 1.5 per token; −6 over 4: 1.5 too.
    logp, tokens = doubles(-18.0, -6.0), torch.tensor([12, 4])
    assert nll(logp, tokens, reduction="mean").tolist() == [1.5, 1.5]
    assert nll(logp, tokens, reduction="sum").tolist() == [18.0, 6.0]
    with pytest.raises(ValueError, match="reduction = 'max': must be 'mean' or 'sum'"):
        nll(logp, tokens, reduction="max")  # type: ignore[arg-type]


def test_the_floor_of_four_is_active_on_the_mean_and_never_on_the_sum():
    # A 12-token caption at 1.5 nats per token: 4 − 1.5 = 2.5 on the mean, ReLU(4 − 18) = 0 on the sum.
    logp, tokens = doubles(-18.0), torch.tensor([12])
    assert nll_floor_penalty(nll(logp, tokens, reduction="mean"), 4.0).tolist() == [2.5]
    assert nll_floor_penalty(nll(logp, tokens, reduction="sum"), 4.0).tolist() == [0.0]


def test_penalties_by_hand():
    # ReLU(4 − x) and ReLU(x − 4) for x = 1.5, 4, 6.5; their gradients are −1 0 0 and 0 0 1.
    for penalty, values, slopes in (
        (nll_floor_penalty, [2.5, 0.0, 0.0], [-1.0, 0.0, 0.0]),
        (nll_ceiling_penalty, [0.0, 0.0, 2.5], [0.0, 0.0, 1.0]),
    ):
        rejected = doubles(1.5, 4.0, 6.5).requires_grad_()
        result = penalty(rejected, 4.0)
        assert result.tolist() == values
        assert torch.autograd.grad(result.sum(), [rejected])[0].tolist() == slopes


def test_the_hinge_outside_the_batch_mean_is_not_the_mean_of_hinges():
    # Mean of 2 and 7 is 4.5: no penalty on the batch, but (2 + 0)/2 = 1 when taken example by example.
    rejected = doubles(2.0, 7.0)
    assert nll_floor_penalty(rejected.mean(), 4.0).item() == 0.0
    assert nll_floor_penalty(rejected, 4.0).mean().item() == 1.0


@unhurried
@given(st.floats(0.0, 50.0), st.floats(0.0, 50.0))
def test_floor_and_ceiling_split_the_distance(value: float, threshold: float):
    below = nll_floor_penalty(doubles(value), threshold)
    above = nll_ceiling_penalty(doubles(value), threshold)
    assert below.item() >= 0 and above.item() >= 0 and below.item() * above.item() == 0
    assert above.item() - below.item() == pytest.approx(value - threshold)


def test_label_smoothing_by_hand_and_against_torch():
    # .9·1.5 + .1·5 = 1.85.
    assert label_smoothed_nll(doubles(1.5), doubles(5.0), epsilon=0.1).item() == pytest.approx(1.85)
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gold = torch.tensor([0, 3, 8, 8, 1, 2])
    log_p = logits.log_softmax(-1)
    plain, uniform = -log_p.gather(-1, gold[:, None]).mean(), -log_p.mean()
    torch.testing.assert_close(
        label_smoothed_nll(plain[None], uniform[None], epsilon=0.1)[0],
        torch.nn.functional.cross_entropy(logits, gold, label_smoothing=0.1),
    )


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pairs: dpo(pairs, beta=0.0), "beta = 0.0: must be finite and above 0"),
        (lambda pairs: dpo(pairs, beta=math.nan), "beta = nan: must be finite and above 0"),
        (lambda pairs: cw_dpo(pairs, beta=math.inf), "beta = inf: must be finite and above 0"),
        (lambda pairs: cw_dpo(pairs, tau=-1.0), "tau = -1.0: must be finite and above 0"),
        (lambda pairs: cw_dpo(pairs, floor=math.nan), "floor = nan: must be finite"),
        (lambda pairs: cw_dpo(pairs, w_min=1.5), "w_min = 1.5: must be between 0 and 1"),
        (lambda pairs: cooling_weight(pairs.rejected_mean, tau=0.0), "tau = 0.0: must be finite and above 0"),
        (lambda pairs: dpo_shift(pairs, beta=-1.0), "beta = -1.0: must be finite and above 0"),
        (lambda pairs: dpo_shift(pairs, weight=-0.1), "weight = -0.1: must be between 0 and 1"),
        (lambda pairs: rpo(pairs, beta=0.0), "beta = 0.0: must be finite and above 0"),
        (lambda pairs: rpo(pairs, alpha=-1.0), "alpha = -1.0: must be finite and at least 0"),
        (lambda pairs: nll_floor_penalty(pairs.chosen, math.inf), "floor = inf: must be finite"),
        (lambda pairs: nll_ceiling_penalty(pairs.chosen, math.nan), "ceiling = nan: must be finite"),
        (
            lambda pairs: label_smoothed_nll(pairs.chosen, pairs.chosen, epsilon=1.1),
            "epsilon = 1.1: must be between 0 and 1",
        ),
    ],
)
def test_refusals_name_key_value_and_rule(call: Callable[[PairLogps], object], message: str):
    with pytest.raises(ValueError) as caught:
        call(example_pairs())
    assert str(caught.value) == message


# --- Squeezing -------------------------------------------------------------------------------------------------------


def test_a_negative_step_on_an_unlikely_class_squeezes_mass_into_the_argmax():
    # 50 classes, logits falling by .2: π_0 = (1 − e^−.2)/(1 − e^−10) = .1812775, π_49 = π_0·e^−9.8 = .0000101.
    logits = (-0.2 * torch.arange(50, dtype=torch.float64)).requires_grad_()
    before = logits.softmax(-1).detach()
    close(before[[0, 49]], 0.1812775, 0.0000101)
    # Descent on log π_49 with step 1 adds π − y to the logits. To first order π_0 changes by π_0(π_0 − Σπ²), with
    # Σπ² = .0996771: .1812775·.0816004 = .0147923.
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[49], [logits])
    change = (logits - gradient).softmax(-1).detach() - before
    assert change[0].item() == pytest.approx(0.01479, rel=0.05)
    # The argmax gains most, in nats too, and the classes below Σπ² lose: all from the fourth, π_3 = .0994872, on.
    assert change.argmax().item() == 0
    assert torch.log1p(change / before).argmax().item() == 0
    assert (change[:3] > 0).all() and (change[3:] < 0).all()


def test_cooling_shrinks_the_squeeze_of_an_easy_negative():
    # One token over 50 classes; the loser is class 49, ℓ̄ = log .0000101 = −11.507, w = σ(−8.507) = .000202. With the
    # policy at the reference both residuals are β/2: the loser's push on the argmax is w times DPO's.
    logits = (-0.2 * torch.arange(50, dtype=torch.float64)).requires_grad_()
    log_p = logits.log_softmax(-1)
    chosen, rejected = log_p[[10]], log_p[[49]]
    pairs = make_pairs(
        chosen.detach(), rejected, chosen.detach(), rejected.detach(), torch.tensor([1]), torch.tensor([1])
    )
    (plain,) = torch.autograd.grad(dpo(pairs).loss.sum(), [logits], retain_graph=True)
    result = cw_dpo(pairs)
    (cooled,) = torch.autograd.grad(result.loss.sum(), [logits])
    assert plain[0].item() == pytest.approx(-0.05 * 0.1812775, abs=1e-8)
    assert result.weight.item() == pytest.approx(0.000202, abs=1e-6)
    torch.testing.assert_close(cooled, result.weight * plain)
