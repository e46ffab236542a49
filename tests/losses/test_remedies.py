"""Remedies beyond the paper: what they promise about the pulls of CW-DPO."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.losses import PairLogps, SpanLogps, cw_dpo, dpo
from cwdpo.objectives.spans import differing_span, span_mask
from pair_examples import doubles, example_pairs, far_pair, make_pairs, pair_batches, unhurried

# --- An upper bound on the pull -------------------------------------------------------------------------------------


def test_bound_by_hand():
    # The far pair: DPO's 1 − a = .0024726, CW-DPO's 1 − a′ = .4293351 with w = .0474259. Bounded: β·.0024726 on the
    # winner, .0474259 of it on the loser: .0000117, where plain CW-DPO has .0020362.
    result = cw_dpo(far_pair(), beta=0.1, bound_pull=True)
    assert result.winner_coefficient.item() == pytest.approx(0.1 * 0.0024726, abs=1e-8)
    assert result.loser_coefficient.item() == pytest.approx(0.1 * 0.0024726 * 0.0474259, abs=1e-9)
    # The loss is scaled by the same .0024726 / .4293351.
    plain = cw_dpo(far_pair(), beta=0.1)
    assert (result.loss / plain.loss).item() == pytest.approx(0.0024726 / 0.4293351, rel=1e-4)


@unhurried
@given(pair_batches(), st.booleans(), st.floats(0.0, 1.0))
def test_no_pull_is_above_dpo_s(pairs: PairLogps, renormalise: bool, w_min: float):
    plain = dpo(pairs, beta=0.2)
    for result in (
        cw_dpo(pairs, beta=0.2, w_min=w_min, renormalise=renormalise, bound_pull=True),
        cw_dpo(pairs, beta=0.2, w_min=w_min, bound_pull=True),
    ):
        assert (result.winner_coefficient <= plain.winner_coefficient * (1 + 1e-9)).all()
        assert (result.loser_coefficient <= plain.loser_coefficient * (1 + 1e-9)).all()


@unhurried
@given(pair_batches())
def test_a_pull_below_dpo_s_stays(pairs: PairLogps):
    plain, cooled = dpo(pairs, beta=0.2), cw_dpo(pairs, beta=0.2)
    bounded = cw_dpo(pairs, beta=0.2, bound_pull=True)
    lower = cooled.winner_coefficient <= plain.winner_coefficient
    torch.testing.assert_close(bounded.loss[lower], cooled.loss[lower])


# --- Cooling of the differing span ----------------------------------------------------------------------------------


def with_span(pairs: PairLogps, logp: torch.Tensor, reference: torch.Tensor, tokens: list[int]) -> PairLogps:
    return replace(pairs, rejected_span=SpanLogps(logp=logp, reference=reference, tokens=torch.tensor(tokens)))


def test_span_by_hand():
    # First pair: Δ_w = 1, Δ_l = −.5. Span: 2 tokens, log π −8 (ℓ̄ = −4, w = σ(−1) = .2689414), reference −7: Δ_s = −1,
    # so the shared tokens have +.5. m′ = .1·(1 − .5 + .2689414) = .0768941.
    pairs = with_span(example_pairs(), doubles(-8, -20, -72), doubles(-7, -17, -12), [2, 5, 12])
    result = cw_dpo(pairs, beta=0.1)
    assert result.weight[0].item() == pytest.approx(0.2689414, abs=1e-7)
    assert result.margin[0].item() == pytest.approx(0.0768941, abs=1e-7)
    # The other two differ everywhere: what CW-DPO gives.
    whole = cw_dpo(example_pairs(), beta=0.1)
    torch.testing.assert_close(result.loss[1:], whole.loss[1:])


@pytest.mark.parametrize("detach", [True, False])
def test_the_loser_coefficient_is_that_on_the_span(detach: bool):
    # log π(y_l) = shared + span; the gradient on the span is the loser's, on the shared tokens the winner's.
    shared, span = doubles(-4.0).requires_grad_(), doubles(-8.0).requires_grad_()
    chosen = doubles(-10.0).requires_grad_()
    pairs = make_pairs(chosen, shared + span, doubles(-11.0), doubles(-11.5), torch.tensor([5]), torch.tensor([6]))
    result = cw_dpo(with_span(pairs, span, doubles(-7.0), [2]), beta=0.3, detach=detach)
    on_shared, on_span, on_winner = torch.autograd.grad(result.loss.sum(), [shared, span, chosen])
    torch.testing.assert_close(on_winner, -result.winner_coefficient)
    torch.testing.assert_close(on_shared, result.winner_coefficient)
    torch.testing.assert_close(on_span, result.loser_coefficient)


def test_shared_tokens_get_no_hidden_finetuning():
    # One table of logits: y_w = 2 0 4 and y_l = 2 0 1 share two tokens. CW-DPO fine-tunes them, cooling the span does
    # not: their gradient is exactly nothing, as in DPO, and the third token's is CW-DPO's form.
    generator = torch.Generator().manual_seed(11)
    table = torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    winner, loser = torch.tensor([2, 0, 4]), torch.tensor([2, 0, 1])
    logps = table.log_softmax(-1)
    on_winner, on_loser = (logps.gather(-1, ids[:, None]).squeeze(-1) for ids in (winner, loser))
    pairs = make_pairs(
        on_winner.sum()[None], on_loser.sum()[None], doubles(-4), doubles(-6), torch.tensor([3]), torch.tensor([3])
    )
    result = cw_dpo(with_span(pairs, on_loser[2:], doubles(-2.0), [1]), beta=0.2)
    (gradient,) = torch.autograd.grad(result.loss.sum(), [table])
    torch.testing.assert_close(gradient[:2], torch.zeros(2, 5, dtype=torch.float64), atol=1e-15, rtol=0)
    residual, pi, one_hot = 0.2 * (1 - torch.sigmoid(result.margin)), table.softmax(-1)[2], torch.eye(5)
    expected = residual * ((pi - one_hot[4]) - result.weight * (pi - one_hot[1]))
    torch.testing.assert_close(gradient[2], expected.detach())


@pytest.mark.parametrize(
    ("winner", "loser", "span"),
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
def test_differing_span(winner: list[int], loser: list[int], span: tuple[int, int]):
    assert differing_span(winner, loser) == span
    assert span_mask([(winner, loser)], 6)[0].nonzero().flatten().tolist() == list(range(*span))
