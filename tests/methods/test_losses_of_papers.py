"""Losses from papers, by hand: Δ_w = 1, 1, −5; Δ_l = −.5, −3, −60; ℓ̄_l = −2, −4, −6; lengths 5, 4, 10 and 6, 5, 12."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.data.formats.trl import read_trl
from cwdpo.data.own_rows import read_native
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import Response
from cwdpo.errors import DataError
from cwdpo.methods import ACPO, BCO, BDPO, BPO, DADPO, DPO, KTO, MDPO, MPO, NLL, APOZero, CHiP, GateDPO
from cwdpo.methods.pair_logps import PairLogps
from cwdpo.methods.sum import Sum, Term
from cwdpo.negatives.sources.dataset import DatasetSource
from cwdpo.objectives.preference import pair_logps
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse
from pair_examples import (
    close,
    doubles,
    example_pairs,
    loser,
    make_pairs,
    pair_batches,
    under_an_altered_image,
    unhurried,
    winner,
)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bpo() -> None:
    # α = .3: min(1, .15), min(1, .9), min(−5, 18) = .15, .9, −5. The third pulls its winner, the others push losers.
    method = BPO(beta=0.1)
    close(method.loss(example_pairs()), *(round(softplus(-0.1 * x), 7) for x in (0.15, 0.9, -5)))
    close(winner(method, example_pairs()), 0.0, 0.0, round(0.1 * sigmoid(0.5), 7))
    close(loser(method, example_pairs()), *(round(0.03 * sigmoid(-0.1 * x), 7) for x in (0.15, 0.9)), 0.0)


def test_bdpo() -> None:
    # λ = .5: log(.5·e^−.5 + .5) = −.2190, and far below: log(.5 + .5·e^−60) = log .5.
    method = BDPO(beta=0.1)
    first, last = math.log(0.5 * math.exp(-0.5) + 0.5), math.log(0.5)
    losses = method.loss(example_pairs())
    assert losses[0].item() == pytest.approx(softplus(-0.1 * (1 - first)))
    assert losses[2].item() == pytest.approx(softplus(-0.1 * (-5 - last)))
    # The loser's coefficient: the winner's times .5·e^−.5/(.5·e^−.5 + .5) = σ(−.5); nothing far below.
    shares = loser(method, example_pairs()) / winner(method, example_pairs())
    close(shares[[0, 2]], round(sigmoid(-0.5), 7), 0.0)
    torch.testing.assert_close(
        BDPO(policy_share=1 - 1e-12).loss(example_pairs())[:2], DPO().loss(example_pairs())[:2], rtol=1e-6, atol=0
    )


def test_gate_dpo() -> None:
    # α = 100, τ = .05: p = e^−2, e^−4, e^−6 = .1353, .0183, .0025.
    method = GateDPO(beta=0.1)
    assert torch.equal(method.loss(example_pairs()), DPO(beta=0.1).loss(example_pairs()))
    torch.testing.assert_close(winner(method, example_pairs()), winner(DPO(beta=0.1), example_pairs()))
    gates = loser(method, example_pairs()) / loser(DPO(beta=0.1), example_pairs())
    close(gates, *(round(sigmoid(100 * (math.exp(x) - 0.05)), 7) for x in (-2, -4, -6)))


def test_acpo() -> None:
    # β = .1, δ = .02: τ = .22, .18, .44; r_w = .1, .1, −.5; r_l = −.05, −.3, −6.
    # α = (.1 − .22)/−.05 = 2.4 → 1, (.1 − .18)/−.3 = .2667, (−.5 − .44)/−6 = .15667: there the margin is τ.
    method = ACPO(beta=0.1)
    close(method.loss(example_pairs()), *(round(softplus(-x), 7) for x in (0.15, 0.18, 0.44)))
    close(loser(method, example_pairs()) / winner(method, example_pairs()), 1.0, 0.2666667, 0.1566667)
    # A winner beyond the target alone: α = 0. A loser above the reference, or at it: α = 1.
    tokens = torch.tensor([1, 1, 1])
    rest = doubles(-2.0, -2.0, -2.0)
    others = make_pairs(doubles(0.0, -2.0, -2.0), doubles(-3.0, -1.0, -2.0), rest, rest, tokens, tokens)
    close(loser(method, others) / winner(method, others), 0.0, 1.0, 1.0)


@unhurried
@given(pair_batches(), st.floats(0.05, 2.0))
def test_mpo_is_a_sum(pairs: PairLogps, beta: float) -> None:
    terms = (Term(method=DPO(beta=beta), weight=0.8), Term(method=BCO(beta=beta), weight=0.2), Term(method=NLL()))
    torch.testing.assert_close(MPO(beta=beta).loss(pairs), Sum(terms=terms).loss(pairs))


def test_kto() -> None:
    # β = .1, zero: 1 − σ(.1) + .5·(1 − σ(.05)).
    first = KTO(beta=0.1, undesirable_weight=0.5).loss(example_pairs())[0].item()
    assert first == pytest.approx(sigmoid(-0.1) + 0.5 * sigmoid(-0.05))
    torch.testing.assert_close(KTO(beta=0.1).loss(example_pairs()), APOZero(beta=0.1).loss(example_pairs()))
    # batch: of the first two pairs alone with Δ = 1, 1, −.5, 3 it is z₀ = 4.5/4 = 1.125.
    tokens = torch.tensor([2, 2])
    rest = doubles(-9.0, -9.0)
    pairs = make_pairs(doubles(-8.0, -8.0), doubles(-9.5, -6.0), rest, rest, tokens, tokens)
    found = KTO(beta=0.1, reference_point="batch").loss(pairs)
    close(found, *(round(sigmoid(-0.1 * (1 - 1.125)) + sigmoid(0.1 * (x - 1.125)), 7) for x in (-0.5, 3.0)))
    # Below the reference on the whole (example_pairs): z₀ = 0.
    torch.testing.assert_close(
        KTO(reference_point="batch").loss(example_pairs()), KTO(reference_point="zero").loss(example_pairs())
    )


@pytest.mark.parametrize("point", ["zero", "batch"])
def test_kto_is_trl_s(point: Any) -> None:
    """KTOTrainer's loss with both responses of each pair, its z₀ that of the same responses."""
    trl = pytest.importorskip("trl.trainer.kto_trainer")
    chance = torch.Generator().manual_seed(1)
    logps, reference = (-5 * torch.rand(6, 3, generator=chance) for _ in range(2))
    reference -= 0.4  # z₀ above 0
    logps.requires_grad_()

    def model(values: torch.Tensor) -> Any:
        nothing = torch.zeros_like(values)
        out = SimpleNamespace(log_probs=values, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
        return lambda **_: out

    same = lambda value: value  # noqa: E731
    policy, frozen = model(logps), model(reference)
    sums = {id(policy): logps.detach().sum(-1), id(frozen): reference.sum(-1)}
    options: dict[str, Any] = {
        "accelerator": SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "model": torch.nn.Identity(),
        "ref_model": frozen,
        "calculate_KL": point == "batch",
        "loss_type": "kto" if point == "batch" else "apo_zero_unpaired",
        "_compute_kl_logps": lambda asked, _: sums[id(asked)] if point == "batch" else None,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        **{"precompute_ref_logps": False, "aux_loss_enabled": False, "beta": 0.3, "_total_train_tokens": 0},
        **{"_tp_size": 1, "desirable_weight": 1.2, "undesirable_weight": 0.7},
    }
    mask = torch.tensor([[0, 1, 1, 1]] * 6)
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    labels = torch.tensor([True, True, True, False, False, False])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl, "disable_gradient_checkpointing", lambda *_, **__: nullcontext())
        want = trl.KTOTrainer._compute_loss(SimpleNamespace(**options), policy, inputs | {"label": labels}, False)
    total, known, tokens = logps.sum(-1), reference.sum(-1), torch.full((3,), 3)
    pairs = make_pairs(total[:3], total[3:], known[:3], known[3:], tokens, tokens)
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    found = KTO(beta=0.3, reference_point=point, **weights).loss(pairs).mean() / 2
    assert found.item() == pytest.approx(want.item(), rel=1e-5) and want.item() > 0.1
    (gradient,), (expected,) = (torch.autograd.grad(loss, [logps]) for loss in (found, want))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_chip() -> None:
    # β = .5, Δ_w = 1, Δ_l = −.5, Δ̃_w = 3: .75 + .5·(1 − 3) = −.25; both pulls of the winner are .5·σ(.25).
    grey = under_an_altered_image(
        example_pairs(), doubles(3.0, 1.0, -5.0), doubles(0.0, 0.0, 0.0), doubles(0.0, 0.0, 0.0)
    )
    assert CHiP(beta=0.5).loss(grey)[0].item() == pytest.approx(softplus(0.25))
    assert winner(CHiP(beta=0.5), grey)[0].item() == pytest.approx(2 * 0.5 * sigmoid(0.25))
    assert CHiP().needs.image == "blank" != MDPO().needs.image


# --- Scores of responses ---------------------------------------------------------------------------------------------


def test_da_dpo() -> None:
    # m = .15, .4, 5.5 at β = .1; gaps .5, −2, 0: times 2·1.5, 2·3, 2·1.
    pairs = replace(example_pairs(), score_gap=doubles(0.5, -2.0, 0.0))
    found = DADPO(beta=0.1, score_scale=2.0).loss(pairs)
    close(found, *(round(softplus(-x), 7) for x in (0.45, 2.4, 11.0)))


def test_scores_come_from_the_rows(tmp_path: Path) -> None:
    row = {
        "prompt": "What is it?",
        "image": "a.png",
        "responses": [
            {"text": "a cat", "role": "chosen", "score": 0.75},
            {"text": "a dog", "role": "rejected", "score": 1},
            {"text": "a cow", "role": "rejected"},
        ],
    }
    (group,) = read_native(row, RowContext("rows.jsonl", 1, tmp_path))
    assert [r.score for r in group.responses] == [0.75, 1.0, None]
    assert [Response(**r.to_json()) for r in group.responses] == list(group.responses)
    for score in ("high", True, math.nan):
        row["responses"][0]["score"] = score
        with pytest.raises(RowError, match=r"responses\[0\].score"):
            read_native(row, RowContext("rows.jsonl", 1, tmp_path))
    trl = {"prompt": "What?", "chosen": "a cat", "rejected": "a dog", "score_chosen": 8, "score_rejected": math.nan}
    (group,) = read_trl(trl, RowContext("rows.jsonl", 1, tmp_path))
    assert [r.score for r in group.responses] == [8.0, None]
    group = group.with_responses([replace(r, role="rejected") for r in group.responses])
    context: Any = None
    assert [c.response().score for c in DatasetSource().candidates(group, 1, context)] == [8.0, None]


def test_a_pair_s_gap_is_that_of_its_responses() -> None:
    def batch(*scores: float | None) -> Batch:
        roles = ("chosen", "rejected", "rejected")
        made = [EncodedResponse((1,), r, "dataset", None, "", s) for r, s in zip(roles, scores, strict=True)]
        return Batch((EncodedGroup("a", "rows.jsonl:3", (1,), {}, {}, tuple(made)),))

    logps, mask = torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool)
    gaps = pair_logps(DADPO(), batch(0.75, 1.0, -1.0), logps, mask, None).score_gap
    assert gaps is not None and gaps.tolist() == [-0.25, 1.75]
    assert pair_logps(DPO(), batch(None, None, None), logps, mask, None).score_gap is None
    with pytest.raises(DataError, match=r"rows\.jsonl:3: a rejected .* score"):
        pair_logps(DADPO(), batch(0.75, 1.0, None), logps, mask, None)
