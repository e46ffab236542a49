"""GRPO's loss and gradient against TRL's own code; PPO's by hand; how shares of micro-batches add up."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cwdpo.methods.base import METHODS
from cwdpo.methods.on_policy import OnPolicyMethod
from cwdpo.objectives.sampled import OnPolicyObjective, SampledResponse
from cwdpo.scoring.batch import Batch, EncodedGroup, Scores
from cwdpo.training.rollouts import who_waits

LENGTHS = ((3, 1), (4, 2))
"""Two prompts with two responses each."""


def example(seed: int = 0) -> tuple[Batch, Scores]:
    """Random responses: log-probabilities of policy, old policy and reference, and advantages by token."""
    chance = torch.Generator().manual_seed(seed)

    def drawn(n: int, scale: float, shift: float = 0.0) -> tuple[float, ...]:
        return tuple((torch.randn(n, generator=chance) * scale + shift).tolist())

    groups: list[EncodedGroup] = []
    logps = torch.zeros(4, 4)
    for i, lengths in enumerate(LENGTHS):
        responses: list[SampledResponse] = []
        for j, n in enumerate(lengths):
            own = drawn(n, 0.5, -2.0)
            logps[2 * i + j, :n] = torch.tensor(own)
            old = tuple(a + b for a, b in zip(own, drawn(n, 0.3), strict=True))
            reference = tuple(a + b for a, b in zip(own, drawn(n, 0.3), strict=True))
            advantages = drawn(1, 1.0) * n
            responses.append(
                SampledResponse(ids=(1,) * n, reward=float(j), advantages=advantages, old=old, reference=reference)
            )
        groups.append(EncodedGroup(f"{i}", f"rows:{i}", (1,), {}, {}, tuple(responses)))
    mask = logps != 0
    zeros = torch.zeros_like(logps)
    scores = Scores(logps.requires_grad_(True), mask, zeros, zeros, zeros, mask)
    return Batch(tuple(groups)), scores


def made(name: str = "grpo", **settings: Any) -> OnPolicyMethod:
    method = METHODS.find(name)(**settings)
    assert isinstance(method, OnPolicyMethod)
    return method


def loss_of(method: OnPolicyMethod, batch: Batch, scores: Scores) -> Tensor:
    objective = OnPolicyObjective(method)
    return objective(batch, scores, None, objective.counts(batch), None).loss


def padded(rows: list[tuple[float, ...]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_is_trl_s(kl: float, seed: int) -> None:
    trl = pytest.importorskip("trl.trainer.grpo_trainer")
    batch, scores = example(seed)
    responses: Any = batch.responses
    given = {
        "prompt_ids": torch.ones(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": scores.mask.long(),
        "completion_mask": scores.mask.long(),
        "advantages": torch.tensor([r.advantages[0] for r in responses]),
        "old_per_token_logps": padded([r.old for r in responses]),
        "ref_per_token_logps": padded([r.reference for r in responses]),
    }
    theirs = scores.logps.detach().clone().requires_grad_(True)
    fake = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (theirs, torch.zeros_like(theirs), None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(gather=lambda value: value, reduce=lambda value, reduction: value, num_processes=1),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        model=SimpleNamespace(training=True),
        **{"aux_loss_enabled": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None},
        **{"importance_sampling_level": "token", "beta": kl, "loss_type": "grpo", "epsilon_low": 0.2},
        **{"epsilon_high": 0.2, "use_vllm": False, "_entropy_bonus_enabled": False},
        current_gradient_accumulation_steps=1,
    )
    want = trl.GRPOTrainer._compute_loss(fake, None, given)
    want.backward()
    found = loss_of(made(kl=kl), batch, scores)
    found.backward()
    assert found.item() == pytest.approx(want.item(), rel=1e-6)
    assert abs(found.item()) > 1e-3
    torch.testing.assert_close(scores.logps.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    held = fake._metrics["train"]["clip_ratio/region_mean"]
    objective = OnPolicyObjective(made(kl=kl))
    means = objective(batch, scores, None, objective.counts(batch), None).tally.means()
    assert means["clip_ratio"] == pytest.approx(held[0]) and held[0] > 0
    if kl:
        assert means["kl"] == pytest.approx(fake._metrics["train"]["kl"][0], rel=1e-5)


def test_ppo_is_a_mean_over_tokens() -> None:
    """Ten tokens; the divergence is in the rewards, not here."""
    batch, scores = example()
    responses: Any = batch.responses
    total = 0.0
    for row, response in enumerate(responses):
        for place, (advantage, old) in enumerate(zip(response.advantages, response.old, strict=True)):
            ratio = float((scores.logps[row, place].detach() - old).exp())
            total -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    for kl in (0.0, 0.5):
        found = loss_of(made("ppo", kl=kl), batch, scores)
        assert found.item() == pytest.approx(total / 10, rel=1e-5)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_shares_add_up(name: str) -> None:
    """Micro-batches of one prompt give what the batch of two gives, values over the whole too."""
    batch, scores = example()
    objective = OnPolicyObjective(made(name))
    totals = objective.counts(batch)
    assert totals == {"prompts": 2.0, "responses": 4.0, "tokens": 10.0}
    whole = objective(batch, scores, None, totals, None)
    parts = 0.0
    for i, group in enumerate(batch.groups):
        rows = slice(2 * i, 2 * i + 2)
        width = max(LENGTHS[i])
        cut = [t[rows, :width] for t in (scores.logps, scores.mask, *[scores.entropy] * 3, scores.mask)]
        parts += objective(Batch((group,)), Scores(*cut), None, totals, None).loss.item()
    assert parts == pytest.approx(whole.loss.item(), rel=1e-6)
    means = whole.tally.means()
    assert objective.value(means) == pytest.approx(whole.loss.item(), rel=1e-6)
    assert means["reward"] == 0.5
    assert means["reward_std"] == pytest.approx(0.5**0.5)
    assert means["completions/mean_length"] == 2.5


def test_without_old_log_probabilities_the_policy_is_the_old_one() -> None:
    """The loss is then −mean A, whatever the log-probabilities, and its gradient −A over lengths and responses."""
    batch, scores = example()

    def sampled(group: EncodedGroup) -> tuple[SampledResponse, ...]:
        return tuple(r for r in group.responses if isinstance(r, SampledResponse))

    groups = tuple(
        EncodedGroup(
            g.id,
            g.origin,
            (1,),
            {},
            {},
            tuple(SampledResponse(ids=r.ids, reward=0.0, advantages=r.advantages) for r in sampled(g)),
        )
        for g in batch.groups
    )
    found = loss_of(made(kl=0.3), Batch(groups), scores)
    found.backward()
    advantages = [r.advantages[0] for g in groups for r in sampled(g)]
    assert len(advantages) == 4
    assert found.item() == pytest.approx(-sum(advantages) / 4, rel=1e-6)
    assert scores.logps.grad is not None
    assert scores.logps.grad[0].tolist() == pytest.approx([-advantages[0] / 3 / 4] * 3 + [0.0])


def test_processes_that_would_wait_are_told_of() -> None:
    assert "1 of 8 processes" in who_waits(16, 16, 8)
    assert "stage2.rollout_batch_size=2 " in who_waits(16, 16, 8)
    assert who_waits(16, 2, 8) == who_waits(3, 1, 8) == who_waits(16, 16, 1) == ""
