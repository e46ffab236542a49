"""Total variation, Jensen-Shannon divergence and entropy against hand numbers, SciPy and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance
from torch import Tensor

from cwdpo.probes.divergence import entropy, jensen_shannon, total_variation

torch.set_num_threads(1)
unhurried = settings(deadline=None, max_examples=50)  # a busy machine is no failure


def log_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_log_p(*shape: int, seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    logits = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.log_softmax(-1).to(dtype)


@st.composite
def two_distributions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two distributions over the same classes, some of them impossible."""
    size = draw(st.integers(1, 12))
    logits = st.one_of(st.floats(-30.0, 30.0), st.just(-math.inf))
    rows: list[Tensor] = []
    for _ in range(2):
        row = torch.tensor(draw(st.lists(logits, min_size=size, max_size=size)), dtype=torch.float64)
        row[draw(st.integers(0, size - 1))] = 0.0  # at least one class is possible
        rows.append(row.log_softmax(-1))
    return rows[0], rows[1]


def test_total_variation_by_hand():
    # ½(|.5−.25| + |.5−.25| + |0−.5|) = .5; half of the mass has to move.
    assert total_variation(log_of(0.5, 0.5, 0.0), log_of(0.25, 0.25, 0.5)).item() == pytest.approx(0.5)
    assert total_variation(log_of(0.3, 0.7, 0.0), log_of(0.0, 0.0, 1.0)).item() == pytest.approx(1.0)


def test_jensen_shannon_by_hand():
    # p = (1, 0), q = (½, ½), m = (¾, ¼): ½·log2(4/3) + ½[½·log2(2/3) + ½·log2(2)]
    # = .2075187 − .1462406 + .25 = .3112781.
    p, q = log_of(1.0, 0.0), log_of(0.5, 0.5)
    assert jensen_shannon(p, q).item() == pytest.approx(0.3112781, abs=5e-8)


def test_entropy_by_hand():
    # ½·log 2 + 2·¼·log 4 = 1.0397208; uniform over 8: log 8; certain: 0.
    assert entropy(log_of(0.5, 0.25, 0.25)).item() == pytest.approx(1.0397208, abs=5e-8)
    assert entropy(log_of(*[0.125] * 8)).item() == pytest.approx(math.log(8))
    assert entropy(log_of(1.0, 0.0, 0.0)).item() == 0.0


def test_jensen_shannon_against_scipy():
    p, q = random_log_p(20, 50, seed=0), random_log_p(20, 50, seed=1)
    p[3, 10:] = -math.inf
    q[3, :15] = -math.inf
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    oracle = distance.jensenshannon(p.exp().numpy(), q.exp().numpy(), base=2, axis=-1) ** 2  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(jensen_shannon(p, q), torch.from_numpy(np.asarray(oracle)))


@unhurried
@given(two_distributions())
def test_properties(pair: tuple[Tensor, Tensor]):
    p, q = pair
    for measure in (total_variation, jensen_shannon):
        value = measure(p, q).item()
        assert -1e-12 <= value <= 1 + 1e-12
        assert value == measure(q, p).item()
        assert measure(p, p).item() == 0.0
    tv, js = total_variation(p, q).item(), jensen_shannon(p, q).item()
    # Lin (1991): JS ≤ TV in bits; Pinsker on both halves: TV² / (2 log 2) ≤ JS. So each is zero only if the other is.
    assert tv * tv / (2 * math.log(2)) - 1e-12 <= js <= tv + 1e-12
    assert -1e-12 <= entropy(p).item() <= math.log(p.numel()) + 1e-12


def test_close_distributions_keep_their_digits_in_float32():
    # Over 4,096 classes, JS of about 1e-7: a difference of logarithms would be 1 to 16 % off here.
    p = random_log_p(4, 4096, seed=2)
    q = (p + 1e-3 * torch.randn(4, 4096, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).log_softmax(
        -1
    )
    exact = jensen_shannon(p, q)
    assert (exact < 1e-6).all() and (exact > 1e-8).all()
    torch.testing.assert_close(jensen_shannon(p.float(), q.float()).double(), exact, rtol=1e-3, atol=0)


def test_impossible_classes_change_nothing():
    p, q = random_log_p(3, 9, seed=4), random_log_p(3, 9, seed=5)
    nowhere = torch.full((3, 4), -math.inf, dtype=torch.float64)
    wider_p, wider_q = torch.cat([p, nowhere], -1), torch.cat([q, nowhere], -1)
    torch.testing.assert_close(total_variation(wider_p, wider_q), total_variation(p, q))
    torch.testing.assert_close(jensen_shannon(wider_p, wider_q), jensen_shannon(p, q))
    torch.testing.assert_close(entropy(wider_p), entropy(p))
    assert (jensen_shannon(p, q) > 0.05).all()


def test_half_precision_is_widened():
    p, q = random_log_p(5, 20, seed=8).bfloat16(), random_log_p(5, 20, seed=9).bfloat16()
    for wide, narrow in (
        (total_variation(p.float(), q.float()), total_variation(p, q)),
        (jensen_shannon(p.float(), q.float()), jensen_shannon(p, q)),
        (entropy(p.float()), entropy(p)),
    ):
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, wide, rtol=0, atol=0)


def test_a_nan_is_not_hidden():
    p, q = log_of(0.5, 0.5), torch.tensor([math.nan, -0.5], dtype=torch.float64)
    assert total_variation(p, q).isnan() and jensen_shannon(p, q).isnan() and entropy(q).isnan()
    impossible = torch.tensor([-math.inf, 0.0], dtype=torch.float64)
    assert jensen_shannon(impossible, q).isnan()


def test_refusals():
    p, q = random_log_p(2, 5, seed=0), random_log_p(1, 5, seed=0)
    for measure in (total_variation, jensen_shannon):
        with pytest.raises(ValueError, match=r"log_q: shape \(1, 5\), must be that of log_p, \(2, 5\)"):
            measure(p, q)
