"""CW-DPO: its weight, its gradient (Eq. 8), and what the options beyond the paper promise about its pulls."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cwdpo.methods import CWDPO, DPO, Method
from cwdpo.methods.base import coefficients
from cwdpo.methods.cooling import cooling_weight
from cwdpo.methods.pair_logps import PairLogps, SpanLogps
from cwdpo.objectives.preference import differing_span, span_mask
from pair_examples import close, doubles, example_pairs, far_pair, loser, make_pairs, pair_batches, unhurried, winner

# --- The weight ------------------------------------------------------------------------------------------------------


def test_the_weight_is_a_half_at_the_floor_and_never_one() -> None:
    # The text says "→ 1 at or above the floor": it is σ(0) = .5 there, and σ(3) = .9525741 for a certain loser.
    close(cooling_weight(doubles(-3.0, 0.0, -6.0)), 0.5, 0.9525741, 0.0474259)
    # τ = 2 halves the logit: σ(1.5) = .8175745. A lower bound: .2 + .8·σ(0) = .6 at the floor, → .2 far below it.
    close(cooling_weight(doubles(0.0), tau=2.0), 0.8175745)
    close(cooling_weight(doubles(-3.0, -1e4), w_min=0.2), 0.6, 0.2)


@unhurried
@given(st.floats(-50.0, 0.0), st.floats(-10.0, 0.0), st.floats(0.1, 5.0), st.floats(0.0, 1.0))
def test_bounds_of_the_weight(logp_mean: float, floor: float, tau: float, w_min: float) -> None:
    weight = cooling_weight(doubles(logp_mean), floor=floor, tau=tau, w_min=w_min).item()
    ceiling = w_min + (1 - w_min) / (1 + math.exp(floor / tau))
    assert w_min - 1e-12 <= weight <= ceiling + 1e-12


@pytest.mark.parametrize(("key", "value"), [("tau", 0.0), ("tau", math.nan), ("floor", math.inf), ("w_min", 1.5)])
def test_a_weight_that_cannot_be(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{key} = "):
        cooling_weight(doubles(-1.0), **{key: value})


# --- The loss --------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    # ℓ̄_l = −2, −4, −6 against the floor −3: w = σ(1), σ(−1), σ(−3) = .7310586, .2689414, .0474259.
    # m′ = .1·(1 + .5·.7310586), .1·(1 + 3·.2689414), .1·(−5 + 60·.0474259) = .1365529, .1806824, −.2154447.
    method = CWDPO(beta=0.1)
    close(method.loss(example_pairs()), 0.6271998, 0.6068812, 0.8066604)  # log(1 + e^−m′)
    close(winner(method, example_pairs()), *(0.1 / (1 + math.exp(m)) for m in (0.1365529, 0.1806824, -0.2154447)))
    close(loser(method, example_pairs()) / winner(method, example_pairs()), 0.7310586, 0.2689414, 0.0474259)


def test_cooling_can_raise_the_loser_coefficient() -> None:
    # Over β: DPO has 1 − σ(.1·60) = 1 − σ(6) = .00247. CW: w = σ(−3) = .04743, m′ = .1·60·.04743 = .28456,
    # 1 − a′ = .42934, and w·(1 − a′) = .02036: eight times DPO's.
    assert loser(DPO(beta=0.1), far_pair()).item() / 0.1 == pytest.approx(0.00247, abs=5e-6)
    assert loser(CWDPO(beta=0.1), far_pair()).item() / 0.1 == pytest.approx(0.02036, abs=5e-6)
    assert winner(CWDPO(beta=0.1), far_pair()).item() / 0.1 == pytest.approx(0.42934, abs=5e-6)


def test_a_weight_of_zero_leaves_no_ranking_signal() -> None:
    # −log σ(βΔ_w): SFT anchored in the reference, the loser gets no gradient at all.
    pairs = example_pairs()
    torch.testing.assert_close(
        CWDPO(beta=0.1, floor=1e4).loss(pairs), -torch.nn.functional.logsigmoid(0.1 * pairs.chosen_shift)
    )
    assert loser(CWDPO(beta=0.1, floor=1e4), pairs).tolist() == [0.0, 0.0, 0.0]
    # A lower bound keeps it: .25 of the winner's coefficient.
    pull, push = coefficients(CWDPO(beta=0.1, floor=1e4, w_min=0.25), pairs)
    torch.testing.assert_close(push, 0.25 * pull)


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of a response whose every position has its own row of logits, `[1]`."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None]).sum()[None]


def test_the_gradient_by_the_logits_is_the_last_form_of_eq_8() -> None:
    # Separate logits per response, 4 and 3 positions over 7 classes. The step −∇_z of a log-likelihood loss on y is
    # (y − π), so ∇_z loss = β(1−a′)(π − y_w) on the winner's positions and −w_c β(1−a′)(π − y_l) on the loser's.
    generator = torch.Generator().manual_seed(3)
    logits_w = torch.randn(4, 7, generator=generator, dtype=torch.float64).requires_grad_()
    logits_l = torch.randn(3, 7, generator=generator, dtype=torch.float64).requires_grad_()
    tokens_w, tokens_l = torch.tensor([1, 5, 0, 2]), torch.tensor([4, 4, 6])
    logps = token_logps(logits_w, tokens_w), token_logps(logits_l, tokens_l)
    pairs = make_pairs(*logps, doubles(-9.0), doubles(-5.0), torch.tensor([4]), torch.tensor([3]))
    losses = CWDPO(beta=0.2, floor=-2.0).loss(pairs)
    weight = 1 / (1 + math.exp(-(pairs.rejected.item() / 3 + 2.0)))
    margin = 0.2 * ((pairs.chosen.item() + 9.0) - weight * (pairs.rejected.item() + 5.0))
    residual = 0.2 / (1 + math.exp(margin))  # β(1 − a′)
    gradient_w, gradient_l = torch.autograd.grad(losses.sum(), [logits_w, logits_l])
    one_hot = torch.nn.functional.one_hot
    torch.testing.assert_close(gradient_w, residual * (logits_w.softmax(-1) - one_hot(tokens_w, 7)).detach())
    torch.testing.assert_close(gradient_l, -residual * weight * (logits_l.softmax(-1) - one_hot(tokens_l, 7)).detach())


def test_attached_factor_and_its_sign_far_from_the_reference() -> None:
    # Δ_l = −60, L = 12, τ = 1, w = σ(−3) = .0474259: 1 + Δ_l(1 − w)/(τL) = 1 − 60·.9525741/12 = −3.7628706.
    detached, attached = CWDPO(beta=0.1), CWDPO(beta=0.1, detach=False)
    assert (loser(attached, far_pair()) / loser(detached, far_pair())).item() == pytest.approx(-3.7628706, abs=5e-7)
    # Near the reference (Δ_l = −.5) the factor is 1 − .5·.2689414/6 = .9775882. The value does not depend on the mode.
    near = loser(attached, example_pairs()) / loser(detached, example_pairs())
    assert near[0].item() == pytest.approx(0.9775882, abs=5e-7)
    assert torch.equal(attached.loss(far_pair()), detached.loss(far_pair()))


@unhurried
@given(pair_batches(), st.floats(0.1, 5.0))
def test_attached_factor_anywhere(pairs: PairLogps, tau: float) -> None:
    # w_min = 0: the two loser coefficients differ by 1 + Δ_l(1 − w)/(τL), cross-multiplied since both may vanish.
    detached, attached = (coefficients(CWDPO(tau=tau, detach=detach), pairs) for detach in (True, False))
    weight = cooling_weight(pairs.rejected_mean, tau=tau)
    factor = 1 + pairs.rejected_shift * (1 - weight) / (tau * pairs.rejected_tokens)
    torch.testing.assert_close(attached[1], (detached[1] * factor).detach())
    torch.testing.assert_close(attached[0], detached[0])


# --- Options of ours -------------------------------------------------------------------------------------------------


def test_renormalise_by_hand() -> None:
    # w = σ(−3) = .0474259, scale 2/1.0474259 = 1.9094430: m′ = .1·1.9094430·(0 + 60·.0474259) = .5433434,
    # 1 − a′ = .3674103; winner .1·1.9094430·.3674103 = .0701549, loser .0474259 of it = .0033272; sum .0734821.
    pull, push = coefficients(CWDPO(beta=0.1, renormalise=True), far_pair())
    assert pull.item() == pytest.approx(0.0701549, abs=2e-6)
    assert push.item() == pytest.approx(0.0033272, abs=2e-6)


@unhurried
@given(pair_batches(), st.floats(0.0, 1.0))
def test_renormalise_gives_the_two_sides_what_dpo_gives_them(pairs: PairLogps, w_min: float) -> None:
    pull, push = coefficients(method := CWDPO(beta=0.2, w_min=w_min, renormalise=True), pairs)
    residual = -torch.expm1(-method.loss(pairs))  # 1 − a′, for loss = −log a′
    torch.testing.assert_close(pull + push, (2 * 0.2 * residual).detach(), atol=1e-12, rtol=1e-6)


def test_bound_by_hand() -> None:
    # The far pair: DPO's 1 − a = .0024726, CW-DPO's 1 − a′ = .4293351 with w = .0474259. Bounded: β·.0024726 on the
    # winner, .0474259 of it on the loser: .0000117, where plain CW-DPO has .0020362.
    pull, push = coefficients(CWDPO(beta=0.1, bound_pull=True), far_pair())
    assert pull.item() == pytest.approx(0.1 * 0.0024726, abs=1e-8)
    assert push.item() == pytest.approx(0.1 * 0.0024726 * 0.0474259, abs=1e-9)


@unhurried
@given(pair_batches(), st.booleans(), st.floats(0.0, 1.0))
def test_no_pull_is_above_dpo_s_and_one_below_it_stays(pairs: PairLogps, renormalise: bool, w_min: float) -> None:
    pull, push = coefficients(DPO(beta=0.2), pairs)
    free = CWDPO(beta=0.2, w_min=w_min, renormalise=renormalise)
    bounded = free.model_copy(update={"bound_pull": True})
    bounded_pull, bounded_push = coefficients(bounded, pairs)
    assert (bounded_pull <= pull * (1 + 1e-9)).all()
    assert (bounded_push <= push * (1 + 1e-9)).all()
    lower = winner(free, pairs) <= pull
    torch.testing.assert_close(bounded.loss(pairs)[lower], free.loss(pairs)[lower])


# --- Cooling of the differing span -----------------------------------------------------------------------------------


def with_span(pairs: PairLogps, logp: Tensor, reference: Tensor, tokens: list[int]) -> PairLogps:
    return replace(pairs, span=SpanLogps(logp=logp, reference=reference, tokens=torch.tensor(tokens)))


def test_span_by_hand() -> None:
    # First pair: Δ_w = 1, Δ_l = −.5. Span: 2 tokens, log π −8 (ℓ̄ = −4, w = σ(−1) = .2689414), reference −7: Δ_s = −1,
    # so the shared tokens have +.5. m′ = .1·(1 − .5 + .2689414) = .0768941.
    pairs = with_span(example_pairs(), doubles(-8, -20, -72), doubles(-7, -17, -12), [2, 5, 12])
    losses = CWDPO(beta=0.1).loss(pairs)
    assert losses[0].item() == pytest.approx(math.log1p(math.exp(-0.0768941)), abs=1e-7)
    # The other two differ everywhere: what CW-DPO gives.
    torch.testing.assert_close(losses[1:], CWDPO(beta=0.1).loss(example_pairs())[1:])


@pytest.mark.parametrize("detach", [True, False])
def test_the_loser_coefficient_is_that_on_the_span(detach: bool) -> None:
    # log π(y_l) = shared + span; the gradient on the span is the loser's, on the shared tokens the winner's.
    shared, span = doubles(-4.0).requires_grad_(), doubles(-8.0).requires_grad_()
    chosen = doubles(-10.0).requires_grad_()
    pairs = make_pairs(chosen, shared + span, doubles(-11.0), doubles(-11.5), torch.tensor([5]), torch.tensor([6]))
    pairs, method = with_span(pairs, span, doubles(-7.0), [2]), CWDPO(beta=0.3, detach=detach)
    on_shared, on_span, on_winner = torch.autograd.grad(method.loss(pairs).sum(), [shared, span, chosen])
    pull, push = coefficients(method, pairs)
    torch.testing.assert_close(on_winner, -pull)
    torch.testing.assert_close(on_shared, pull)
    torch.testing.assert_close(on_span, push)


def test_shared_tokens_cancel_in_dpo_and_are_finetuned_by_cw_dpo_unless_the_span_alone_is_cooled() -> None:
    # One table of logits, row t for position t: y_w = 2 0 4 and y_l = 2 0 1 share two tokens and split at the third.
    # Shared rows: β(1−a′)[(π−y) − w(π−y)] = β(1−a′)(1−w)(π−y), hidden SFT; with w = 1 it is exactly nothing.
    generator = torch.Generator().manual_seed(11)
    table = torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    chosen, rejected = torch.tensor([2, 0, 4]), torch.tensor([2, 0, 1])

    def made() -> PairLogps:
        three = torch.tensor([3])
        return make_pairs(
            token_logps(table, chosen), token_logps(table, rejected), doubles(-4.0), doubles(-6.0), three, three
        )

    def shared(method: Method, pairs: PairLogps) -> Tensor:
        (gradient,) = torch.autograd.grad(method.loss(pairs).sum(), [table])
        assert gradient[2].abs().max() > 1e-3
        return gradient[:2]

    nothing = torch.zeros(2, 5, dtype=torch.float64)
    torch.testing.assert_close(shared(DPO(beta=0.2), made()), nothing, atol=1e-15, rtol=0)
    pull, push = coefficients(CWDPO(beta=0.2), made())
    supervised = (table.softmax(-1) - torch.nn.functional.one_hot(chosen, 5))[:2].detach()  # π − y
    torch.testing.assert_close(shared(CWDPO(beta=0.2), made()), (pull - push) * supervised)
    on_loser = table.log_softmax(-1).gather(-1, rejected[:, None]).squeeze(-1)
    spanned = with_span(made(), on_loser[2:], doubles(-2.0), [1])
    torch.testing.assert_close(shared(CWDPO(beta=0.2), spanned), nothing, atol=1e-15, rtol=0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "span"),
    [
        ([1, 2, 3, 9], [1, 7, 3, 9], (1, 2)),  # one token replaced
        ([1, 2, 3, 4, 9], [1, 7, 3, 8, 9], (1, 4)),  # two, with what is between them
        ([1, 2, 3, 9], [1, 2, 5, 3, 9], (2, 3)),  # one added
        ([1, 2, 3, 9], [1, 3, 9], (1, 2)),  # one left out: the token that stands in its place
        ([1, 1, 9], [1, 9], (1, 2)),  # a repetition left out
        ([1, 9], [1, 1, 9], (1, 2)),  # a repetition added
        ([1, 2, 9], [5, 6, 7], (0, 3)),  # nothing shared
        ([1, 2, 9], [1, 2, 9], (2, 3)),  # the same
        ([1, 2, 3], [1, 2], (1, 2)),  # a beginning, without an end
        ([1], [2], (0, 1)),
    ],
)
def test_differing_span(chosen: list[int], rejected: list[int], span: tuple[int, int]) -> None:
    assert differing_span(chosen, rejected) == span
    assert span_mask([(chosen, rejected)], 6)[0].nonzero().flatten().tolist() == list(range(*span))
