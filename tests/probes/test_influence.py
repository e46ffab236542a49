"""Proposition 1 on a tiny model in float64: the prediction is exact in the limit, by two ways; every norm by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.errors import DataError
from cwdpo.probes.step_influence import (
    SampleLoss,
    belief_geometry,
    measure_influence,
    projected_kernel_norm,
    update_gradient,
)
from cwdpo.recipe import Stage1Section, Stage2Section
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from tiny_training import differing, fresh, rows, weights

LOSSES: dict[str, Any] = {
    "sft": Stage1Section(objective="sft"),
    "sft_c": Stage1Section(objective="sft_c", nll_floor=20.0, weight=0.5),
    "dpo": Stage2Section(objective="dpo"),
    "cw_dpo": Stage2Section(objective="cw_dpo", floor=-8.0),
    "cw_dpo attached": Stage2Section(objective="cw_dpo", floor=-8.0, detach=False),
    "dpo_shift": Stage2Section(objective="dpo_shift"),
    "rpo": Stage2Section(objective="rpo"),
    "sft_c entropy": Stage1Section(objective="sft_c", regularizer="entropy", weight=0.5),
}


def samples(processor: Any, folder: Path, n: int = 3, **changes: Any) -> list[Batch]:
    encoder = PromptEncoder(processor)
    return [Batch((encoder.encode(g),)) for g in rows(n, folder, **{"images": 1, **changes})]


def double() -> tuple[Any, Any]:
    """A model in float64; what transformers casts to float32 by itself (RMSNorm) is measured in float64 too."""
    model, processor = fresh()
    return model.double(), processor


def reference_of(model: Any, batch: Batch, shift: float = 0.0) -> torch.Tensor:
    with torch.no_grad():
        sums = scores_from_logits(SeparateScorer()(model, batch)).logp_sum
    return sums + shift * torch.arange(len(sums))


QUICK = ("sft", "sft_c", "cw_dpo", "rpo")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES])
def test_the_prediction_is_exact_in_the_limit(name: str, tmp_path: Path) -> None:
    """Measured / predicted − 1 falls tenfold with η, down to 1e-5: the rest is of second order."""
    model, processor = double()
    update, other, third = samples(processor, tmp_path)
    loss = SampleLoss(LOSSES[name])
    references = [reference_of(model, update, 0.7)] if loss.needs_reference else None
    errors: list[float] = []
    for eta in (1e-4, 1e-5, 1e-6):
        found = measure_influence(
            model, SeparateScorer(), [update], [update, other, third], loss, references=references, eta=eta
        )
        assert len(found) == 6
        assert all(abs(r.predicted) > 1e-4 * eta for r in found)
        errors.append(max(abs(r.measured / r.predicted - 1) for r in found))
    assert errors[2] < 1e-3
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[1]
    # A step on a sample makes its own chosen response likelier.
    assert found[0].kind == "chosen"
    assert found[0].measured > 0


def test_proposition_1_through_the_kernel(tmp_path: Path) -> None:
    """−η⟨A, K G⟩ with K = J_o J_uᵀ from torch.func is the prediction, and ‖K‖² is what projections estimate."""
    model, processor = double()
    model.set_attn_implementation("eager")  # `torch.func` has no batching rule for the fused kernel on the CPU
    for name, p in model.named_parameters():
        p.requires_grad_("layers.1.self_attn.q_proj" in name or name.endswith("norm.weight"))
    update, other = samples(processor, tmp_path, 2, responses=2, images=0)
    short = Batch(tuple(_shortened(g, 1) for g in update.groups))
    observed = Batch(tuple(_shortened(g, 2) for g in other.groups))
    one = Batch((_only(observed.groups[0], 0),))
    loss, eta = SampleLoss(LOSSES["cw_dpo"]), 1e-3
    reference = reference_of(model, short, 0.3)
    (found,) = measure_influence(model, SeparateScorer(), [short], [one], loss, references=[reference], eta=eta)

    kernel = exact_kernel(model, one, short)
    gradient = update_gradient(model, SeparateScorer(), short, loss, reference)
    logits = SeparateScorer()(model, one)
    pi = logits.logits.detach().softmax(-1)
    a = (torch.nn.functional.one_hot(logits.targets, pi.shape[-1]) - pi) / len(pi)
    through = -eta * float(a.flatten() @ kernel @ gradient.logits.flatten())
    # Eager attention takes its softmax in float32; the terms of the sum cancel, so that its rounding counts tenfold.
    assert through == pytest.approx(found.predicted, rel=1e-5)
    assert found.a_paper_sq == pytest.approx(float(a.square().sum()), rel=1e-6)
    assert found.g_update_sq == pytest.approx(float(gradient.logits.square().sum()), rel=1e-6)

    exact = float(kernel.square().sum())
    estimate, error = projected_kernel_norm(model, SeparateScorer(), one, short, projections=48)
    assert abs(estimate - exact) < 4 * error
    assert error < 0.3 * exact


class Logits(torch.nn.Module):
    """The response logits of a batch as a function of the weights."""

    def __init__(self, model: Any, batch: Batch) -> None:
        super().__init__()
        self.model, self.batch = model, batch

    def forward(self) -> torch.Tensor:
        return SeparateScorer()(self.model, self.batch).logits.flatten()


def exact_kernel(model: Any, observed: Batch, update: Batch) -> torch.Tensor:
    """K = J_o J_uᵀ, with J = ∂z/∂θ from `torch.func`."""
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def jacobian(batch: Batch) -> torch.Tensor:
        logits = Logits(model.eval(), batch)
        by_name = torch.func.jacrev(lambda values: torch.func.functional_call(logits, values, ()), chunk_size=64)(
            weights
        )
        return torch.cat([by_name[name].flatten(1) for name in weights], 1)

    return jacobian(observed) @ jacobian(update).T


def _only(group: Any, index: int) -> Any:
    return replace(group, responses=(group.responses[index],))


def _shortened(group: Any, tokens: int) -> Any:
    return replace(group, responses=tuple(replace(r, ids=r.ids[:tokens]) for r in group.responses))


def test_the_residual_is_the_coefficient_times_pi_minus_y(tmp_path: Path) -> None:
    """G_u = c_w(π − y_w) and −c_l(π − y_l) at their positions (Eq. 8), so ‖G_u‖² = c_w²Σ‖π−y_w‖² + c_l²Σ‖π−y_l‖².

    Also where the prompt is shared: the first token's logits then serve both sides, but each side is a sample's own.
    """
    model, processor = double()
    (update,) = samples(processor, tmp_path, 1)
    loss, reference = SampleLoss(LOSSES["cw_dpo"]), reference_of(model, update, 0.5)
    for scorer in (SeparateScorer(), SharedPrefixScorer()):
        found = update_gradient(model, scorer, update, loss, reference)
        assert 0 < found.loser < found.winner
        with torch.no_grad():
            logits = scorer(model, update)
        pi = logits.logits.softmax(-1) - torch.nn.functional.one_hot(logits.targets, logits.logits.shape[-1])
        by_row = torch.zeros(2, dtype=torch.float64).index_add(0, logits.rows, pi.square().sum(-1))
        expected = found.winner**2 * by_row[0] + found.loser**2 * by_row[1]
        assert float(found.logits.square().sum()) == pytest.approx(float(expected), rel=1e-6)


def test_coefficients_of_several_losers_by_hand(tmp_path: Path) -> None:
    """One chosen and three rejected responses, policy = reference: L is the mean of three losses −log σ(0).

    Each pair's coefficients are β/2 = .05; the winner is in all three: 3 · .05/3. Each loser gets .05/3, all .05.
    """
    model, processor = fresh()
    (update,) = samples(processor, tmp_path, 1, responses=4)
    found = update_gradient(model, SeparateScorer(), update, SampleLoss(LOSSES["dpo"]), reference_of(model, update))
    assert found.winner == pytest.approx(0.05, rel=1e-4)
    assert found.loser == pytest.approx(0.05, rel=1e-4)


def test_small_steps_on_float32_weights_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, processor = fresh()
    (update,) = samples(processor, tmp_path, 1)
    for eta in (1e-4, 1e-5):
        measure_influence(model, SeparateScorer(), [update], [update], SampleLoss(LOSSES["sft"]), eta=eta)
    assert [record.args for record in caplog.records] == [(1e-5, 1e-4)]


def test_belief_geometry_by_hand() -> None:
    """V = 4: uniform gives 4·4·(1/16) + 2 = 3 = V − 1; a certain class 4 + 2 = 6 = 2(V − 1). And the definition."""
    uniform = torch.full((4,), 0.25).log()
    certain = torch.tensor([0.0, -math.inf, -math.inf, -math.inf])
    assert belief_geometry(torch.stack([uniform, certain])).tolist() == pytest.approx([3.0, 6.0])
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    a = torch.eye(4, dtype=torch.float64) - torch.ones(4, 1, dtype=torch.float64) * pi
    assert float(belief_geometry(pi.log())) == pytest.approx(float(a.square().sum()))


def test_lb_k_by_its_definition(tmp_path: Path) -> None:
    """A step of known size on a float32 model: each LB_K is the quotient of its parts; nothing is changed."""
    model, processor = fresh(attention_dropout=0.5)
    model.train()
    updates = samples(processor, tmp_path, 2)
    observed = [updates[0], *samples(processor, tmp_path / "other", 1, seed=1, responses=3)]
    before, modes = weights(model), [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    found = measure_influence(model, SeparateScorer(), updates, observed, SampleLoss(LOSSES["sft"]), eta=1e-2)
    names = [(r.update, r.observed, r.kind) for r in found]
    assert names[:3] == [("row-0", "row-0", "chosen"), ("row-0", "row-0", "medium"), ("row-0", "row-0", "chosen")]
    assert [update for update, _, _ in names] == ["row-0"] * 5 + ["row-1"] * 5
    for r in found:
        assert r.lb_k == pytest.approx(r.delta_log_pi_sq / (1e-4 * r.a_belief_sq * r.g_update_sq))
        assert r.g_observed_sq == pytest.approx(r.a_paper_sq * r.tokens**2)
        assert r.loser_coefficient == 0
    # SFT: L = −ℓ̄(y_w), so the pull on log π(y_w) is one over its length.
    assert found[0].winner_coefficient == pytest.approx(1 / found[0].tokens)
    assert found[0].loss == pytest.approx(-found[0].logp_mean, rel=1e-5)
    assert not differing(weights(model), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in model.parameters())


def test_mistakes(tmp_path: Path) -> None:
    model, processor = fresh()
    (single,) = samples(processor, tmp_path, 1, responses=1)
    with pytest.raises(DataError, match="dpo needs a chosen and a rejected response"):
        update_gradient(model, SeparateScorer(), single, SampleLoss(LOSSES["dpo"]), torch.zeros(1))
    with pytest.raises(DataError, match="influence is not known for mdpo"):
        SampleLoss(Stage2Section(objective="mdpo"))
