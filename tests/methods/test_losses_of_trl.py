"""The losses that TRL has too: hand arithmetic, and loss and gradient of TRL's own code on the same log-probabilities.

Written against trl 1.16: its trainers are given log-probabilities in place of a model's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cwdpo.errors import RecipeError
from cwdpo.methods import (
    AOT,
    BCO,
    CPO,
    DPO,
    EXO,
    FDPO,
    IPO,
    LDDPO,
    LNDPO,
    NCA,
    ORPO,
    RPO,
    SPPO,
    AlphaPO,
    APODown,
    APOZero,
    DiscoPOP,
    Hinge,
    Method,
    Robust,
)
from cwdpo.methods.base import coefficients
from cwdpo.methods.nll import NLL
from cwdpo.methods.pair_logps import PairLogps
from cwdpo.methods.sum import Sum, Term
from cwdpo.objectives.preference import PreferenceObjective, pair_logps
from cwdpo.recipe import Recipe
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse, Scores
from pair_examples import close, doubles, example_pairs, loser, make_pairs, winner

ids = lambda value: value.name if isinstance(value, Method) else ""  # noqa: E731


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- Values by hand: Δ_w = 1, 1, −5; Δ_l = −.5, −3, −60; ℓ̄ = −2, −2, −3 and −2, −4, −6; m at β = .1: .15, .4, 5.5 ---


def test_apo() -> None:
    # β = .1: r_w = .1, .1, −.5; r_l = −.05, −.3, −6.
    zero, down = APOZero(beta=0.1).loss(example_pairs()), APODown(beta=0.1).loss(example_pairs())
    pairs = (0.1, -0.05), (0.1, -0.3), (-0.5, -6.0)
    close(zero, *(round(1 - sigmoid(x) + sigmoid(y), 7) for x, y in pairs))
    close(down, *(round(sigmoid(x) + 1 - sigmoid(x - y), 7) for x, y in pairs))
    # Down pulls the winner down at the reference as much as zero pulls it up, but for the gap: −¼ + ¼ = 0 there.
    same = make_pairs(*(doubles(-3.0) for _ in range(4)), torch.tensor([2]), torch.tensor([2]))
    assert winner(APOZero(beta=1.0), same).item() == pytest.approx(0.25)
    assert winner(APODown(beta=1.0), same).item() == pytest.approx(0.0)
    assert loser(APODown(beta=1.0), same).item() == pytest.approx(0.25)


def test_nca() -> None:
    # First pair, β = .1: r_w = .1, r_l = −.05.
    want = softplus(-0.1) + 0.5 * softplus(0.1) + 0.5 * softplus(-0.05)
    assert NCA(beta=0.1).loss(example_pairs())[0].item() == pytest.approx(want)
    # The winner rests where σ(r_w) = ⅔, r_w = log 2 = β·Δ_w.
    at_rest = make_pairs(doubles(-3 + math.log(2)), *(doubles(-3.0) for _ in range(3)), *[torch.tensor([2])] * 2)
    assert winner(NCA(beta=1.0), at_rest).item() == pytest.approx(0.0, abs=1e-12)


def test_exo() -> None:
    # σ(.15) = .5374298: .5374298·log(.5374298/.9) + .4625702·log(.4625702/.1).
    want = 0.5374298 * math.log(0.5374298 / 0.9) + 0.4625702 * math.log(0.4625702 / 0.1)
    assert EXO(beta=0.1, label_smoothing=0.1).loss(example_pairs())[0].item() == pytest.approx(want, abs=1e-6)
    # At rest where σ(m) = 1 − ε: m = log 9.
    rest = make_pairs(doubles(math.log(9) - 3), *(doubles(-3.0) for _ in range(3)), *[torch.tensor([2])] * 2)
    assert EXO(beta=1.0, label_smoothing=0.1).loss(rest).item() == pytest.approx(0.0, abs=1e-12)


def test_sppo() -> None:
    # 1/(2·.5) = 1: (1 − 1)² + (−.5 + 1)², 0 + (−3 + 1)², (−5 − 1)² + (−60 + 1)².
    close(SPPO(beta=0.5).loss(example_pairs()), 0.25, 4.0, 36.0 + 3481.0)
    # 2(1 − Δ_w) and 2(Δ_l + 1).
    close(winner(SPPO(beta=0.5), example_pairs()), 0.0, 0.0, 12.0)
    close(loser(SPPO(beta=0.5), example_pairs()), 1.0, -4.0, -118.0)


def test_robust() -> None:
    # ε = .2: (.8·.6209570 − .2·.7709570)/.6, and .1·(.4625702 + .2/.6).
    found = Robust(beta=0.1, label_smoothing=0.2)
    assert found.loss(example_pairs())[0].item() == pytest.approx((0.8 * 0.6209570 - 0.2 * 0.7709570) / 0.6, abs=1e-6)
    assert winner(found, example_pairs())[0].item() == pytest.approx(0.1 * (0.4625702 + 1 / 3), abs=1e-6)
    assert torch.equal(Robust(label_smoothing=0.0).loss(example_pairs()), DPO().loss(example_pairs()))


def test_hinge() -> None:
    close(Hinge(beta=0.1).loss(example_pairs()), 0.85, 0.6, 0.0)
    close(winner(Hinge(beta=0.1), example_pairs()), 0.1, 0.1, 0.0)


def test_discopop() -> None:
    # m = .15, τ = .05: s = σ(3) = .9525741; .0474259·.6209570 + .9525741·e^−.15.
    want = 0.0474259 * 0.6209570 + 0.9525741 * math.exp(-0.15)
    assert DiscoPOP(beta=0.1).loss(example_pairs())[0].item() == pytest.approx(want, abs=1e-6)


def test_ln_dpo() -> None:
    # h of IPO: .2833333, .85, 4.5.
    close(LNDPO(beta=2.0).loss(example_pairs()), *(round(softplus(-2 * h), 7) for h in (17 / 60, 0.85, 4.5)))


def test_orpo() -> None:
    # p = e^−2, e^−2, e^−3 and e^−2, e^−4, e^−6. First pair: equal odds, 2 + .5·log 2.
    def odds(x: float) -> float:
        return math.exp(x) / (1 - math.exp(x))

    found = ORPO(odds_weight=0.5).loss(example_pairs())
    assert found[0].item() == pytest.approx(2 + 0.5 * math.log(2))
    ratio = odds(-3) / odds(-6)
    assert found[2].item() == pytest.approx(3 + 0.5 * math.log(1 + 1 / ratio))


def test_orpo_where_a_response_is_certain() -> None:
    sure = torch.zeros(1, requires_grad=True)
    pairs = make_pairs(sure, torch.tensor([-1.0]), *[torch.zeros(1)] * 2, torch.tensor([3]), torch.tensor([3]))
    loss = ORPO().loss(pairs).sum()
    (gradient,) = torch.autograd.grad(loss, [sure])
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_alphapo() -> None:
    # α = .5: r = 2(1 − e^1), 2(1 − e^1), 2(1 − e^1.5) and 2(1 − e^1), 2(1 − e^2), 2(1 − e^3); β = .1, γ = 0.
    gaps = (2 * (math.exp(b) - math.exp(a)) for a, b in ((1, 1), (1, 2), (1.5, 3)))
    found = AlphaPO(beta=0.1, alpha=0.5, target_margin=0.0).loss(example_pairs())
    close(found, *(round(softplus(-0.1 * gap), 7) for gap in gaps))


def test_cpo() -> None:
    # β = .1: log π gaps 2, 12, 42: softplus(−.2), … plus .5 · (2, 2, 3).
    gaps = (0.2, 1.2, 4.2), (2, 2, 3)
    want = [round(softplus(-m) + 0.5 * n, 7) for m, n in zip(*gaps, strict=True)]
    close(CPO(beta=0.1, sft_weight=0.5).loss(example_pairs()), *want)
    assert not CPO().needs.reference


def test_f_dpo() -> None:
    # First pair, β = 1: u_w = e, u_l = e^−.5.
    first = example_pairs()
    forward = FDPO(beta=1.0, alpha=1.0).loss(first)[0].item()
    assert forward == pytest.approx(softplus(-(math.exp(0.5) - math.exp(-1))))
    js = FDPO(beta=1.0, divergence="js").loss(first)[0].item()
    assert js == pytest.approx(softplus(-math.log(sigmoid(1.0) / sigmoid(-0.5))))
    alpha = FDPO(beta=1.0, alpha=0.5).loss(first)[0].item()
    assert alpha == pytest.approx(softplus(-2 * (math.exp(0.25) - math.exp(-0.5))))
    # α → 0 is DPO.
    near = FDPO(alpha=1e-6).loss(first)
    torch.testing.assert_close(near, DPO().loss(first), rtol=1e-4, atol=1e-4)


def test_aot() -> None:
    """Gaps log π_w − log π_l = 2, 12, 42 are sorted; those of the reference, .5, 8, −13, are −13, .5, 8."""
    close(AOT(beta=0.1).loss(example_pairs()), *(round(softplus(-0.1 * d), 7) for d in (15.0, 11.5, 34.0)))
    # Unpaired: Δ_w −5, 1, 1 against Δ_l −60, −3, −.5.
    unpaired = AOT(beta=0.1, paired=False).loss(example_pairs())
    close(unpaired, *(round(softplus(-0.1 * d), 7) for d in (55.0, 4.0, 1.5)))


# --- What TRL computes -----------------------------------------------------------------------------------------------

LENGTHS = ((3, 5), (6, 2), (4, 4), (1, 6))
"""Tokens of chosen and rejected in each pair."""

SAME: list[tuple[dict[str, Any], Method]] = [
    ({"loss_types": ["sigmoid"]}, DPO(beta=0.3)),
    ({"loss_types": ["hinge"]}, Hinge(beta=0.3)),
    ({"loss_types": ["ipo"]}, IPO(beta=0.3)),
    ({"loss_types": ["exo_pair"], "label_smoothing": 0.01}, EXO(beta=0.3, label_smoothing=0.01)),
    ({"loss_types": ["nca_pair"]}, NCA(beta=0.3)),
    ({"loss_types": ["robust"], "label_smoothing": 0.2}, Robust(beta=0.3, label_smoothing=0.2)),
    ({"loss_types": ["bco_pair"]}, BCO(beta=0.3)),
    ({"loss_types": ["sppo_hard"]}, SPPO(beta=0.3)),
    ({"loss_types": ["aot"], "label_smoothing": 0.1}, AOT(beta=0.3, label_smoothing=0.1)),
    ({"loss_types": ["aot_unpaired"]}, AOT(beta=0.3, paired=False)),
    ({"loss_types": ["apo_zero"]}, APOZero(beta=0.3)),
    ({"loss_types": ["apo_down"]}, APODown(beta=0.3)),
    ({"loss_types": ["discopop"], "args": SimpleNamespace(discopop_tau=0.05)}, DiscoPOP(beta=0.3)),
    ({"loss_types": ["sigmoid_norm"]}, LNDPO(beta=0.3)),
    ({"loss_types": ["sigmoid"], "ld_alpha": 0.4}, LDDPO(beta=0.3, excess_weight=0.4)),
    ({"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"}, FDPO(beta=0.3, alpha=1.0)),
    ({"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"}, FDPO(beta=0.3, divergence="js")),
    (
        {"loss_types": ["sigmoid"], "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        FDPO(beta=0.3, alpha=0.3),
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), SAME, ids=ids)
def test_loss_and_gradient_are_trl_s(theirs: dict[str, Any], ours: Method) -> None:
    logps, reference = example_tokens(LENGTHS)
    want = trl_loss(logps, reference, LENGTHS, **theirs)
    found = our_loss(ours, logps, reference, LENGTHS)
    assert found.item() == pytest.approx(want.item(), rel=1e-5) and abs(want.item()) > 1e-3
    gradient, expected = (torch.autograd.grad(loss, [logps])[0] * held(LENGTHS) for loss in (found, want))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("lengths", [LENGTHS, ((4, 2), (4, 5), (4, 3), (4, 4))])
def test_nll_is_a_mean_over_responses_and_trl_s_over_tokens(lengths: tuple[tuple[int, int], ...]) -> None:
    """They agree where the chosen responses of a micro-batch have one length, and differ as lengths do."""
    logps, reference = example_tokens(lengths)
    theirs = trl_loss(logps, reference, lengths, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.5])
    ours = our_loss(RPO(beta=0.3, sft_weight=0.5), logps, reference, lengths)
    chosen = logps.detach()[: len(lengths)]
    tokens = torch.tensor([w for w, _ in lengths])
    by_token, by_response = -chosen.sum() / tokens.sum(), -(chosen.sum(-1) / tokens).mean()
    assert (ours - theirs).item() == pytest.approx(0.5 * (by_response - by_token).item(), abs=1e-6)
    assert (abs(by_response - by_token) < 1e-6) == (len({w for w, _ in lengths}) == 1)


def test_mpo_is_trl_s() -> None:
    lengths = ((4, 2), (4, 5), (4, 3))
    logps, reference = example_tokens(lengths)
    weights = {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
    terms = (Term(method=DPO(beta=0.3), weight=0.8), Term(method=BCO(beta=0.3), weight=0.2), Term(method=NLL()))
    want, found = trl_loss(logps, reference, lengths, **weights), our_loss(Sum(terms=terms), logps, reference, lengths)
    gradient, expected = (torch.autograd.grad(loss, [logps])[0] * held(lengths) for loss in (found, want))
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_cpo_and_orpo_are_trl_s() -> None:
    """TRL adds the likelihood as a mean over a batch's tokens elsewhere: the terms that compare."""
    cpo, orpo = pytest.importorskip("trl.experimental.cpo"), pytest.importorskip("trl.experimental.orpo")
    accelerator = SimpleNamespace(device="cpu")
    settings = SimpleNamespace(alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=0.0, accelerator=accelerator)
    pairs = example_pairs()
    ours = CPO(beta=0.3, sft_weight=0.0)
    alike(ours.loss(pairs), cpo.CPOTrainer.cpo_loss(settings, pairs.chosen, pairs.rejected)[0], pairs)
    settings.alpha, settings.loss_type, settings.simpo_gamma = 0.25, "simpo", 0.7
    theirs = cpo.CPOTrainer.cpo_loss(settings, pairs.chosen_mean, pairs.rejected_mean)[0]
    alike(AlphaPO(beta=0.3, target_margin=0.7).loss(pairs), theirs, pairs)
    settings = SimpleNamespace(beta=0.7, accelerator=accelerator)
    theirs = -orpo.ORPOTrainer.odds_ratio_loss(settings, pairs.chosen_mean, pairs.rejected_mean)[0]
    alike(ORPO(odds_weight=0.7).loss(pairs) + pairs.chosen_mean, theirs.double(), pairs)


def alike(one: Tensor, other: Tensor, pairs: PairLogps) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    mine, want = (torch.autograd.grad(loss.sum(), [pairs.chosen, pairs.rejected]) for loss in (one, other))
    torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-6)


# --- What reads more than sums ---------------------------------------------------------------------------------------


def test_ld_dpo() -> None:
    """Tokens 3 and 5: the chosen response whole, of the rejected one three tokens and .4 of the others."""
    logps, reference = example_tokens(LENGTHS)
    shift = (logps - reference).detach()
    chosen, rejected = shift[0, :3].sum(), shift[4, :3].sum() + 0.4 * shift[4, 3:].sum()
    pairs = read(LDDPO(), logps, reference, LENGTHS)
    found = LDDPO(beta=0.3, excess_weight=0.4).loss(pairs)
    assert found[0].item() == pytest.approx(softplus(-0.3 * (chosen - rejected).item()), abs=1e-6)
    torch.testing.assert_close(LDDPO(excess_weight=1.0).loss(pairs), DPO().loss(pairs))
    # The coefficients are those on the first tokens: DPO's, at this loss' margin.
    pull, push = coefficients(LDDPO(beta=0.3, excess_weight=0.4), pairs)
    torch.testing.assert_close(pull, push)
    assert pull[0].item() == pytest.approx(0.3 * sigmoid(-0.3 * (chosen - rejected).item()), abs=1e-6)


def test_aot_refuses_a_part_of_an_update() -> None:
    logps, reference = example_tokens(LENGTHS)
    batch, scores = encoded(LENGTHS), scores_of(logps, LENGTHS)
    objective, known = PreferenceObjective(AOT()), reference.sum(-1)[order(len(LENGTHS))]
    whole = objective(batch, scores, known, {"pairs": 4.0}, None)
    torch.testing.assert_close(whole.loss, our_loss(AOT(), logps, reference, LENGTHS))
    with pytest.raises(RecipeError, match=r"aot.* sees 4 of 8 "):
        objective(batch, scores, known, {"pairs": 8.0}, None)
    with pytest.raises(ValueError, match=r"stage2.micro_batch_size = 8.*32"):
        Recipe.model_validate({"stage2": {"objective": "aot"}})
    assert Recipe.model_validate({"stage2": {"objective": "aot", "micro_batch_size": 32}}).stage2.method == AOT()
    with pytest.raises(ValueError, match=r"micro_batch_size"):
        Recipe.model_validate({"stage2": {"objective": ["aot", "nll"]}})


# --- The same log-probabilities for both -----------------------------------------------------------------------------


def example_tokens(lengths: tuple[tuple[int, int], ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of policy and reference by token, 0 at padding: all chosen responses, then all rejected."""
    chance = torch.Generator().manual_seed(seed)
    mask = held(lengths)
    policy, reference = (-3 * torch.rand(mask.shape, generator=chance) * mask for _ in range(2))
    return policy.requires_grad_(), reference


def held(lengths: tuple[tuple[int, int], ...]) -> Tensor:
    """Where no padding is."""
    tokens = torch.tensor([*(pair[0] for pair in lengths), *(pair[1] for pair in lengths)])
    return torch.arange(int(tokens.max())) < tokens[:, None]


def trl_loss(logps: Tensor, reference: Tensor, lengths: tuple[tuple[int, int], ...], **settings: Any) -> Tensor:
    """DPOTrainer's loss, its model replaced by the log-probabilities; one token of prompt before each response."""
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    mask = torch.nn.functional.pad(held(lengths), (1, 0)).long()
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}

    def model(values: Tensor) -> Any:
        nothing = torch.zeros_like(values)
        out = SimpleNamespace(log_probs=values, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
        return lambda **_: out

    same = lambda value: value  # noqa: E731
    options: dict[str, Any] = {
        "accelerator": SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "model": torch.nn.Identity(),
        "ref_model": model(reference),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        **{"ld_alpha": None, "precompute_ref_logps": False, "aux_loss_enabled": False, "use_weighting": False},
        **{"f_divergence_type": "reverse_kl", "label_smoothing": 0.0, "beta": 0.3, "_total_train_tokens": 0},
        **{"_tp_size": 1},
    }
    fake = SimpleNamespace(**options | {"loss_weights": [1.0]} | settings)
    fake.args.gradient_checkpointing_kwargs = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl, "disable_gradient_checkpointing", lambda *_, **__: nullcontext())
        return trl.DPOTrainer._compute_loss(fake, model(logps), inputs, False)


def our_loss(method: Method, logps: Tensor, reference: Tensor, lengths: tuple[tuple[int, int], ...]) -> Tensor:
    return method.loss(read(method, logps, reference, lengths)).mean()


def read(method: Method, logps: Tensor, reference: Tensor, lengths: tuple[tuple[int, int], ...]) -> PairLogps:
    """What a method reads of them."""
    rows = order(len(lengths))
    scores = scores_of(logps, lengths)
    return pair_logps(method, encoded(lengths), scores.logps, scores.mask, reference[rows])


def order(pairs: int) -> list[int]:
    """Rows of a batch, pair by pair, among all chosen and then all rejected responses."""
    return [row for pair in range(pairs) for row in (pair, pairs + pair)]


def encoded(lengths: tuple[tuple[int, int], ...]) -> Batch:
    def response(role: str, tokens: int) -> EncodedResponse:
        return EncodedResponse(tuple(range(tokens)), role, "dataset", None, "")

    both = [(response("chosen", w), response("rejected", other)) for w, other in lengths]
    return Batch(tuple(EncodedGroup(str(i), "", (1,), {}, {}, pair) for i, pair in enumerate(both)))


def scores_of(logps: Tensor, lengths: tuple[tuple[int, int], ...]) -> Scores:
    rows = order(len(lengths))
    nothing = torch.zeros_like(logps)
    return Scores(logps[rows], held(lengths)[rows], nothing, nothing, nothing, nothing.bool())
