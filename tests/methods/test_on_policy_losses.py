"""GRPO's and PPO's arithmetic by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.methods.grpo import group_advantages
from cwdpo.methods.on_policy import TokenLogps, clipped_surrogate, is_clipped, kl_to_reference
from cwdpo.methods.ppo import generalised_advantages


def test_group_advantages() -> None:
    """1, 0, 0, 1: mean ½, squares of ¼ each, std √(4·¼/3) = .57735; equal rewards say nothing."""
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]], dtype=torch.float64))
    one = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert found[0].tolist() == pytest.approx([one, -one, -one, one])
    assert one == pytest.approx(0.86588, abs=1e-5)
    assert found[1].tolist() == pytest.approx([0.0] * 4, abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-3, 3))
def test_group_advantages_add_up_to_nothing(rewards: list[float], shift: float) -> None:
    values = torch.tensor([rewards], dtype=torch.float64)
    found = group_advantages(values)
    assert float(found.sum()) == pytest.approx(0, abs=1e-6)
    assert group_advantages(values + shift) == pytest.approx(found, abs=1e-6)


def test_kl() -> None:
    """R = π/π_ref of 2: ½ + log 2 − 1; of ½: 2 − log 2 − 1; of 1: 0."""
    logps = torch.log(torch.tensor([[0.4, 0.1, 0.3]], dtype=torch.float64))
    reference = torch.log(torch.tensor([[0.2, 0.2, 0.3]], dtype=torch.float64))
    assert kl_to_reference(logps, reference)[0].tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2), 0.0])


def test_kl_is_unbiased() -> None:
    """Its mean under π is KL(π ‖ π_ref)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = float((p * (p / q).log()).sum())
    assert float((p * kl_to_reference(p.log()[None], q.log()[None])[0]).sum()) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # at the start: the policy gradient
        (1.5, 2.0, -2.4, 0.0),  # a good token that is far up already: held at 1.2
        (1.5, -2.0, 3.0, 3.0),  # a bad one that went up: all of it counts
        (0.5, 2.0, -1.0, -1.0),  # a good one that went down: likewise
        (0.5, -2.0, 1.6, 0.0),  # a bad one that is far down already: held at .8
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_clip_on_both_sides(ratio: float, advantage: float, loss: float, slope: float) -> None:
    """Loss and its derivative by log π, at ε = .2: −ρA where it counts."""
    logps = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    tokens = TokenLogps(logps=logps, old=old, advantages=torch.tensor([[advantage]], dtype=torch.float64))
    found, cut = clipped_surrogate(tokens, clip=0.2), is_clipped(tokens, clip=0.2)
    found.sum().backward()
    assert logps.grad is not None
    assert (found.item(), logps.grad.item()) == pytest.approx((loss, slope))
    assert bool(cut) == (slope == 0.0)


def test_generalised_advantages() -> None:
    """Rewards 0, 0, 1 and values .2, .4, .5: δ = .2, .1, .5; at λ = ½: .5, .1 + .25, .2 + .175."""
    rewards = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 9.0, 9.0]], dtype=torch.float64)
    values = torch.tensor([[0.2, 0.4, 0.5], [0.25, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = generalised_advantages(rewards, values, mask, gae_lambda=0.5)
    assert found[0].tolist() == pytest.approx([0.375, 0.35, 0.5])
    assert found[1].tolist() == pytest.approx([-1.25, 0.0, 0.0])  # padding says nothing


def test_generalised_advantages_at_the_ends() -> None:
    """λ = 1: what is earned from here on, less the value; λ = 0: the surprise alone."""
    rewards, values = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[0.1, 0.2, 0.3]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    whole = generalised_advantages(rewards, values, mask, gae_lambda=1.0)
    assert whole[0].tolist() == pytest.approx([1.4, 0.8, 1.7], abs=1e-6)
    alone = generalised_advantages(rewards, values, mask, gae_lambda=0.0)
    assert alone[0].tolist() == pytest.approx([0.6, -0.9, 1.7], abs=1e-6)
