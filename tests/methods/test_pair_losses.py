"""Every loss on pairs: hand arithmetic, what it becomes, its coefficients against their formulas and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from cwdpo.methods import (
    ACPO,
    AOT,
    BCO,
    BDPO,
    BPO,
    CDPO,
    CPO,
    CWDPO,
    DPO,
    DPOP,
    EXO,
    FDPO,
    IPO,
    KTO,
    LNDPO,
    MDPO,
    METHODS,
    MPO,
    NCA,
    OPADPO,
    ORPO,
    RPO,
    SPPO,
    VDPO,
    WPO,
    AlphaPO,
    APODown,
    APOZero,
    DiscoPOP,
    DPOShift,
    FocalDPO,
    FocalPO,
    GateDPO,
    Hinge,
    Method,
    Robust,
    SimPO,
)
from cwdpo.methods.base import coefficients
from cwdpo.methods.pair_logps import PairLogps
from pair_examples import (
    close,
    doubles,
    example_pairs,
    loser,
    make_pairs,
    pair_batches,
    softplus,
    under_an_altered_image,
    unhurried,
    winner,
)

PLAIN: list[Method] = [
    DPO(beta=0.3),
    CWDPO(beta=0.3),
    CWDPO(beta=0.3, floor=-2.0, tau=0.5, w_min=0.2, detach=False),
    CWDPO(beta=0.3, w_min=0.1, detach=False, renormalise=True),
    CWDPO(beta=0.3, bound_pull=True, renormalise=True, detach=False),
    DPOShift(beta=0.3, shift_weight=0.7),
    RPO(beta=0.3, sft_weight=1.5),
    CDPO(beta=0.3, label_smoothing=0.2),
    IPO(beta=0.3),
    SimPO(target_margin=0.7),
    FocalDPO(beta=0.3),
    FocalPO(beta=0.3, focus=0.5),
    DPOP(winner_penalty=5.0),
    WPO(beta=0.3),
    BCO(beta=0.3, threshold=0.1),
    ORPO(odds_weight=0.7),
    AlphaPO(alpha=0.5, target_margin=0.7),
    CPO(beta=0.3, sft_weight=0.5),
    APOZero(beta=0.3),
    APODown(beta=0.3),
    NCA(beta=0.3),
    EXO(beta=0.3, label_smoothing=0.01),
    SPPO(beta=0.3),
    Robust(beta=0.3, label_smoothing=0.2),
    Hinge(beta=0.3),
    DiscoPOP(beta=0.3, blend_width=0.5),
    LNDPO(beta=3.0),
    FDPO(beta=0.3, alpha=0.3),
    FDPO(beta=0.3, divergence="js"),
    AOT(beta=0.3, label_smoothing=0.2),
    KTO(beta=0.3, undesirable_weight=0.5),
    KTO(beta=0.3, reference_point="batch"),
    MPO(beta=0.3, threshold=0.1),
    BPO(beta=0.3),
    BDPO(beta=0.3),
    ACPO(beta=0.3),
    GateDPO(beta=0.3, gate_slope=10.0),
]
"""Every loss that reads nothing but a pair; what holds for all of them is tested on all of them."""


def test_all_methods_on_pairs_are_here() -> None:
    by_name = {name: m for name, m in METHODS.all().items() if m.stage == "stage2" and not m.on_policy}
    more = {name for name, m in by_name.items() if m().needs.image or m().needs.cut or m().needs.scores}
    assert {m.name for m in PLAIN} | {"nll"} == by_name.keys() - more


# --- The input -------------------------------------------------------------------------------------------------------


def test_shifts_and_means() -> None:
    pairs = example_pairs()
    # Δ_w: −10+11, −8+9, −30+25.  Δ_l: −12+11.5, −20+17, −72+12.
    assert pairs.chosen_shift.tolist() == [1.0, 1.0, -5.0]
    assert pairs.rejected_shift.tolist() == [-0.5, -3.0, -60.0]
    # ℓ̄: −10/5, −8/4, −30/10 and −12/6, −20/5, −72/12.
    assert pairs.chosen_mean.tolist() == [-2.0, -2.0, -3.0]
    assert pairs.rejected_mean.tolist() == [-2.0, -4.0, -6.0]


def test_what_would_broadcast_or_round_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reference_chosen: shape \(2, 1\)"):
        make_pairs(torch.zeros(2), torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), torch.ones(2), torch.ones(2))
    # bfloat16 has 8 significant bits: between 64 and 128 its numbers are half a nat apart.
    assert torch.tensor(-72.2, dtype=torch.bfloat16).item() == -72.0
    with pytest.raises(ValueError, match=r"rejected: dtype torch.bfloat16"):
        make_pairs(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), *[torch.zeros(2)] * 4)


# --- Values by hand: Δ_w = 1, 1, −5; Δ_l = −.5, −3, −60; ℓ̄ = −2, −2, −3 and −2, −4, −6; DPO's m at β = .1: .15, .4, 5.5


def test_dpo() -> None:
    # Loss = log(1 + e^−m); coefficient = .1/(1 + e^m).
    close(DPO(beta=0.1).loss(example_pairs()), 0.6209570, 0.5130153, 0.0040784)
    close(winner(DPO(beta=0.1), example_pairs()), 0.0462570, 0.0401312, 0.0004070)


def test_dpo_shift() -> None:
    # f = .5: m = .1·(1 + .25), .1·(1 + 1.5), .1·(−5 + 30) = .125, .25, 2.5; the loser's pull is half the winner's.
    method = DPOShift(beta=0.1, shift_weight=0.5)
    close(method.loss(example_pairs()), 0.6325990, 0.5759394, 0.0788897)
    torch.testing.assert_close(loser(method, example_pairs()), 0.5 * winner(method, example_pairs()))


def test_rpo() -> None:
    # DPO's losses plus 2 · (2, 2, 3) nats per token; the winner's coefficient plus 2 / (5, 4, 10).
    close(RPO(beta=0.1, sft_weight=2.0).loss(example_pairs()), 4.6209570, 4.5130153, 6.0040784)
    close(winner(RPO(beta=0.1, sft_weight=2.0), example_pairs()), 0.4462570, 0.5401312, 0.2004070)


def test_cdpo() -> None:
    # ε = .2: .8·log(1 + e^−m) + .2·log(1 + e^m), and log(1 + e^m) = m + log(1 + e^−m): DPO's loss + .2·m.
    method = CDPO(beta=0.1, label_smoothing=0.2)
    close(method.loss(example_pairs()), 0.6209570 + 0.03, 0.5130153 + 0.08, 0.0040784 + 1.1)
    # β(1 − ε − σ(m)): σ(.15) = .5374298, σ(.4) = .5986877, σ(5.5) = .9959299 > .8: that pair pulls back.
    close(winner(method, example_pairs()), *(0.1 * (0.8 - a) for a in (0.5374298, 0.5986877, 0.9959299)))


def test_ipo() -> None:
    # h = 1/5 + .5/6, 1/4 + 3/5, −5/10 + 60/12 = .2833333, .85, 4.5; target 1/(2·.5) = 1.
    close(IPO(beta=0.5).loss(example_pairs()), 0.5136111, 0.0225, 12.25)
    # 2(1 − h)/L: 1.4333333/5, .3/4, −7/10 and over 6, 5, 12.
    close(winner(IPO(beta=0.5), example_pairs()), 0.2866667, 0.075, -0.7)
    close(loser(IPO(beta=0.5), example_pairs()), 0.2388889, 0.06, -0.5833333)


def test_simpo() -> None:
    # m = 2·(0, 2, 3) − 1 = −1, 3, 5; log(1 + e^1), log(1 + e^−3), log(1 + e^−5).
    pairs = example_pairs()
    close(SimPO().loss(pairs), 1.3132617, 0.0485874, 0.0067153)
    # 2·σ(1)/5 and over 6.
    assert winner(SimPO(), pairs)[0].item() == pytest.approx(0.2924234, abs=1e-7)
    assert loser(SimPO(), pairs)[0].item() == pytest.approx(0.2436862, abs=1e-7)
    nothing = doubles(0.0, 0.0, 0.0)
    other = make_pairs(pairs.chosen, pairs.rejected, nothing, nothing, pairs.chosen_tokens, pairs.rejected_tokens)
    assert torch.equal(SimPO().loss(other), SimPO().loss(pairs)) and not SimPO().needs.reference


def test_the_two_focal_losses() -> None:
    # p = σ(.15) = .5374298, −log p = .6209570: focal (1 − p)²·.6209570 = .2139712·.6209570; focalpo √p·.6209570.
    focal, focalpo = FocalDPO(beta=0.1, focus=2.0), FocalPO(beta=0.1, focus=0.5)
    assert focal.loss(example_pairs())[0].item() == pytest.approx(0.1328669, abs=1e-6)
    assert focalpo.loss(example_pairs())[0].item() == pytest.approx(0.4552208, abs=1e-6)
    # Against DPO's pull, the first leaves less of a well-ranked pair (the third, p = .996), the second about all.
    plain = winner(DPO(beta=0.1), example_pairs())
    assert winner(focal, example_pairs())[2] < 0.01 * plain[2]
    assert winner(focalpo, example_pairs())[2] > 0.99 * plain[2]
    # FocalPO gives up on badly ranked pairs: m = −6, log p = −6.0025 < −1/γ = −2, 1 + γ log p = −2.0012.
    bad = make_pairs(*(doubles(v) for v in (-60.0, -10.0, 0.0, -10.0)), torch.tensor([9]), torch.tensor([9]))
    assert winner(focalpo, bad).item() < 0 < winner(focal, bad).item()


def test_dpop() -> None:
    # λ = 2, β = .1: only the third winner is below the reference: m = .1·(−5 + 60 − 2·5) = 4.5; coefficient ·3.
    method = DPOP(beta=0.1, winner_penalty=2.0)
    assert method.loss(example_pairs())[2].item() == pytest.approx(softplus(-4.5))
    close(winner(method, example_pairs()) / loser(method, example_pairs()), 1.0, 1.0, 3.0)


def test_wpo() -> None:
    # exp(−2 − 2), exp(−2 − 4), exp(−3 − 6) times DPO's loss; the weight is detached: times its pull too.
    factors = math.exp(-4), math.exp(-6), math.exp(-9)
    dpo = zip((0.6209570, 0.5130153, 0.0040784), factors, strict=True)
    close(WPO(beta=0.1).loss(example_pairs()), *(a * b for a, b in dpo))
    pulls = zip((0.0462570, 0.0401312, 0.0004070), factors, strict=True)
    close(loser(WPO(beta=0.1), example_pairs()), *(a * b for a, b in pulls))


# --- A second image --------------------------------------------------------------------------------------------------


def test_a_second_image_in_the_limits() -> None:
    """Terms that weigh nothing leave DPO; values and pulls by hand stand in `test_image_twins.py`."""
    under, nothing = torch.full((3,), torch.nan), doubles(0.0, 0.0, 0.0)
    pairs = under_an_altered_image(example_pairs(), doubles(3.0, 1.0, -5.0), under, nothing)
    assert torch.equal(OPADPO(image_weight=0.0, anchor_weight=0.0).loss(pairs), DPO().loss(pairs))
    assert torch.equal(OPADPO(image_weight=1.0).loss(pairs), MDPO().loss(pairs))
    torch.testing.assert_close(loser(MDPO(beta=0.5), pairs), winner(DPO(beta=0.5), pairs))
    null = under_an_altered_image(example_pairs(), doubles(-14.0, -8.0, -30.0), doubles(-13.0, -20.0, -72.0), under)
    assert torch.equal(VDPO(guidance=1.0).loss(null), DPO().loss(null))


# --- What holds for all ----------------------------------------------------------------------------------------------


@unhurried
@given(pair_batches())
def test_loss_where_policy_equals_reference(pairs: PairLogps) -> None:
    same = make_pairs(
        pairs.chosen,
        pairs.rejected,
        pairs.chosen.detach(),
        pairs.rejected.detach(),
        pairs.chosen_tokens,
        pairs.rejected_tokens,
    )
    for method in (DPO(), CWDPO(), CWDPO(renormalise=True, detach=False), DPOShift(), CDPO(), DPOP()):
        losses = method.loss(same)
        torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)))
    torch.testing.assert_close(RPO(sft_weight=2.0).loss(same), math.log(2) - 2.0 * same.chosen_mean)


@unhurried
@given(pair_batches(), st.floats(0.05, 2.0), st.booleans(), st.booleans())
def test_each_becomes_dpo(pairs: PairLogps, beta: float, detach: bool, renormalise: bool) -> None:
    plain = DPO(beta=beta)
    for method in (
        CWDPO(beta=beta, w_min=1.0, detach=detach, renormalise=renormalise),
        DPOShift(beta=beta, shift_weight=1.0),
        RPO(beta=beta, sft_weight=0.0),
        CDPO(beta=beta, label_smoothing=0.0),
        FocalDPO(beta=beta, focus=0.0),
        FocalPO(beta=beta, focus=0.0),
        DPOP(beta=beta, winner_penalty=0.0),
    ):
        torch.testing.assert_close(method.loss(pairs), plain.loss(pairs))
        for found, want in zip(coefficients(method, pairs), coefficients(plain, pairs), strict=True):
            torch.testing.assert_close(found, want)


@unhurried
@given(pair_batches())
def test_coefficients_are_the_gradient(pairs: PairLogps) -> None:
    for method in PLAIN:
        by_chosen, by_rejected = torch.autograd.grad(method.loss(pairs).sum(), [pairs.chosen, pairs.rejected])
        pull, push = coefficients(method, pairs)
        torch.testing.assert_close(pull, -by_chosen)
        torch.testing.assert_close(push, by_rejected)
        assert not pull.requires_grad and not push.requires_grad


DETACHING = ("wpo", "gate_dpo", "acpo")


# Finite differences do not see that a factor is detached: those that detach none.
@pytest.mark.parametrize("method", [m for m in PLAIN if not getattr(m, "detach", m.name in DETACHING)])
def test_numeric_gradient(method: Method) -> None:
    if getattr(method, "bound_pull", False) or getattr(method, "renormalise", False):
        return  # these detach a factor in any mode
    pairs = example_pairs()

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        references = pairs.reference_chosen, pairs.reference_rejected
        return method.loss(make_pairs(chosen, rejected, *references, pairs.chosen_tokens, pairs.rejected_tokens))

    assert torch.autograd.gradcheck(loss, (pairs.chosen, pairs.rejected))


@pytest.mark.parametrize("method", PLAIN, ids=lambda m: m.name)
def test_far_margins_stay_finite_in_float32(method: Method) -> None:
    # Margins of ±.3·2000 and beyond: the loss is 0 or linear, never inf or NaN.
    pairs = make_pairs(
        torch.tensor([-1.0, -2001.0], requires_grad=True),
        torch.tensor([-2001.0, -1.0], requires_grad=True),
        torch.tensor([-2001.0, -1.0]),
        torch.tensor([-1.0, -2001.0]),
        torch.tensor([10, 10]),
        torch.tensor([10, 10]),
    )
    losses = method.loss(pairs)
    gradients = torch.autograd.grad(losses.sum(), [pairs.chosen, pairs.rejected])
    assert all(torch.isfinite(t).all() for t in (losses, *gradients, *coefficients(method, pairs)))
    assert losses.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        *((name, "beta", (0.0, -1.0, math.nan, math.inf)) for name in ("dpo", "cw_dpo", "ipo", "simpo", "dpop", "wpo")),
        ("cw_dpo", "tau", (0.0, -1.0, math.nan)),
        ("cw_dpo", "floor", (math.nan, math.inf)),
        ("cw_dpo", "w_min", (-0.1, 1.5)),
        ("dpo_shift", "shift_weight", (-0.1, 1.1)),
        ("rpo", "sft_weight", (-1.0,)),
        ("cdpo", "label_smoothing", (-0.1, 0.5)),
        ("simpo", "target_margin", (-1.0,)),
        ("focal_dpo", "focus", (-1.0,)),
        ("focalpo", "focus", (math.nan,)),
        ("dpop", "winner_penalty", (-1.0,)),
        ("v_dpo", "guidance", (0.0,)),
        ("opa_dpo", "image_weight", (-1.0,)),
        ("opa_dpo", "anchor_weight", (-1.0,)),
    ],
)
def test_refusals(name: str, key: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(ValidationError) as caught:
            METHODS.find(name)(**{key: value})
        assert caught.value.errors()[0]["loc"] == (key,)


# --- Squeezing -------------------------------------------------------------------------------------------------------


def test_a_negative_step_on_an_unlikely_class_squeezes_mass_into_the_argmax() -> None:
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


def test_cooling_shrinks_the_squeeze_of_an_easy_negative() -> None:
    # One token over 50 classes; the loser is class 49, ℓ̄ = log .0000101 = −11.507, w = σ(−8.507) = .000202. With the
    # policy at the reference both residuals are β/2: the loser's push on the argmax is w times DPO's.
    logits = (-0.2 * torch.arange(50, dtype=torch.float64)).requires_grad_()
    log_p = logits.log_softmax(-1)
    chosen, rejected, one = log_p[[10]].detach(), log_p[[49]], torch.tensor([1])
    pairs = make_pairs(chosen, rejected, chosen, rejected.detach(), one, one)
    (plain,) = torch.autograd.grad(DPO().loss(pairs).sum(), [logits], retain_graph=True)
    (cooled,) = torch.autograd.grad(CWDPO().loss(pairs).sum(), [logits])
    assert plain[0].item() == pytest.approx(-0.05 * 0.1812775, abs=1e-8)
    assert (cooled / plain)[0].item() == pytest.approx(0.000202, abs=1e-6)
