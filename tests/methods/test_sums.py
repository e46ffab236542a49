"""Sums of methods, and the two methods that are meant as their terms."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cwdpo import CWDPOConfig
from cwdpo.methods import BCO, CWDPO, DPO, NLL
from cwdpo.methods.pair_logps import SpanLogps
from cwdpo.methods.sum import Sum, Term
from cwdpo.recipe import Stage2Section
from pair_examples import doubles, example_pairs, softplus
from tiny_training import fresh, largest_difference, rows, scores_of, train_dpo, weights

MPO: list[Any] = [
    {"dpo": {"beta": 0.2}, "weight": 0.8},
    {"bco": {"beta": 0.2}, "weight": 0.2},
    {"nll": {}, "weight": 1},
]


def stage2(**keys: Any) -> Any:
    return Stage2Section.model_validate(keys)


def test_terms_by_hand() -> None:
    """β = 0.2, Δ_w = 1, 1, −5, Δ_l = −0.5, −3, −60 and ℓ̄_w = −2, −2, −3."""
    summed = stage2(objective=MPO).method.loss(example_pairs())
    margins, chosen, rejected, nll = (0.3, 0.8, 11.0), (0.2, 0.2, -1.0), (-0.1, -0.6, -12.0), (2.0, 2.0, 3.0)
    want = [
        0.8 * softplus(-m) + 0.2 * (softplus(-w) + softplus(r)) + n
        for m, w, r, n in zip(margins, chosen, rejected, nll, strict=True)
    ]
    torch.testing.assert_close(summed, doubles(*want), atol=1e-6, rtol=0)
    # δ = 0.5: −log σ(0.2 − 0.5) − log σ(0.5 + 0.1)
    shifted = BCO(beta=0.2, threshold=0.5).loss(example_pairs())[0]
    assert float(shifted.detach()) == pytest.approx(softplus(0.3) + softplus(-0.6), abs=1e-6)


def test_a_term_is_given_what_it_asked_for() -> None:
    """Beside a term that cools a span, another cools the whole response as it does alone."""
    pairs = example_pairs()
    span = SpanLogps(logp=pairs.rejected * 0.5, reference=pairs.reference_rejected * 0.5, tokens=doubles(3, 2, 6))
    whole, part = CWDPO(), CWDPO(cooling_span="differing")
    both = Sum(terms=(Term(method=whole, weight=1), Term(method=part, weight=1)))
    assert both.needs == part.needs
    given = replace(pairs, span=span)
    torch.testing.assert_close(both.loss(given), whole.loss(pairs) + part.loss(given))


def test_written_and_read_again() -> None:
    """In a recipe, its dump, and Python; a key of the section holds for terms that leave it out."""
    section = stage2(objective=[*MPO, {"cw_dpo": {"tau": 2.0}}], floor=-7.0)
    assert section.objective == "dpo+bco+nll+cw_dpo"
    assert section.method.terms[3].method == CWDPO(floor=-7.0, tau=2.0)
    assert stage2(**section.model_dump(mode="json")) == section
    summed = Sum(terms=(Term(method=DPO(), weight=0.5), Term(method=NLL())))
    written: list[Any] = [{"dpo": {}, "weight": 0.5}, "nll"]
    assert stage2(method=summed).model_dump() == stage2(objective=written).model_dump()


def test_a_term_in_a_file_of_ones_own(tmp_path: Path) -> None:
    """It is named in the dump as it was written, so that a run directory can be read again."""
    file = tmp_path / "my_losses.py"
    file.write_text("from cwdpo.methods import DPO\n\nclass Mine(DPO):\n    slack: float = 0.5\n")
    section = stage2(objective=[{f"{file}:Mine": {"slack": 0.7}}, "nll"])
    assert section.model_dump()["objective"][0][f"{file}:Mine"]["slack"] == 0.7
    assert stage2(**section.model_dump()).model_dump() == section.model_dump()


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        ([], "objective"),
        ([3], "objective.0"),
        ([{"weight": 1}], "objective.0"),
        ([{"dpo": {}, "nll": {}}], "objective.0"),
        ([{"dpo": {}}, {"nll": {}, "weight": 0}], "objective.1.weight"),
        ([{"dpo": {"beta": -1}}], "beta"),
        ([{"dpo": {"focus": 1}}], "focus"),
        ([{"dpp": {}}], "dpp"),
        ([{"sft": {}}], "sft"),
        ([{"grpo": {}}], "grpo"),
        ([{"mdpo": {}}, {"v_dpo": {}}], "objective"),
        ([{"dpo": {}}, {"opa_dpo": {}}], "objective"),
    ],
)
def test_refused(objective: Any, key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        stage2(objective=objective)
    with pytest.raises(ValidationError, match="beta"):
        stage2(objective=MPO, beta=0.1)


def test_trains_in_any_cut(tmp_path: Path) -> None:
    """The first loss is (0.8 + 2 · 0.2) log 2 and the mean NLL; 4 × 1 and 1 × 4 end at the same weights."""
    groups, start = rows(4, tmp_path, images=1), weights(fresh()[0])
    settings: Any = {"objective": MPO}
    assert CWDPOConfig(str(tmp_path), use_cpu=True, **settings).objective == "dpo+bco+nll"
    runs = [
        train_dpo(*fresh(), groups, tmp_path / str(micro), objective=MPO, max_steps=3, **cut)
        for micro in (1, 4)
        for cut in [{"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}]
    ]
    model, processor = fresh()
    batch, scores = scores_of(model, processor, groups)
    nll = -float(scores.logp_mean[batch.rows("chosen")].mean())
    assert runs[0].state.log_history[0]["loss"] == pytest.approx(1.2 * math.log(2) + nll, rel=1e-5)
    assert largest_difference(weights(runs[0].model), weights(runs[1].model), start) < 5e-5
