"""Pairs to compute losses of, and comparisons that tests of losses share."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from cwdpo.methods.base import Method, coefficients
from cwdpo.methods.pair_logps import AlteredLogps, PairLogps

torch.set_num_threads(1)
unhurried = settings(deadline=None, max_examples=50)  # a busy machine is no failure


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    """log(1 + e^x)."""
    return math.log1p(math.exp(x))


def close(measured: Tensor, *expected: float) -> None:
    """Compare with hand numbers of seven decimals."""
    torch.testing.assert_close(measured.detach().double(), doubles(*expected), atol=1e-7, rtol=0)


def make_pairs(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
) -> PairLogps:
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
    )


def example_pairs() -> PairLogps:
    """Three pairs: a hard loser, an easy one, one far below the reference. Leaves that require gradients."""
    return make_pairs(
        doubles(-10.0, -8.0, -30.0).requires_grad_(),
        doubles(-12.0, -20.0, -72.0).requires_grad_(),
        doubles(-11.0, -9.0, -25.0),
        doubles(-11.5, -17.0, -12.0),
        torch.tensor([5, 4, 10]),
        torch.tensor([6, 5, 12]),
    )


def under_an_altered_image(pairs: PairLogps, chosen: Tensor, rejected: Tensor, reference: Tensor) -> PairLogps:
    return replace(pairs, altered=AlteredLogps(chosen=chosen, rejected=rejected, reference_chosen=reference))


def far_pair() -> PairLogps:
    """L = 12 tokens, ℓ̄_ref = −1, Δ_w = 0, Δ_l = −60: ℓ̄_θ(y_l) = (−12 − 60)/12 = −6."""
    return make_pairs(
        doubles(-12.0).requires_grad_(),
        doubles(-72.0).requires_grad_(),
        doubles(-12.0),
        doubles(-12.0),
        torch.tensor([12]),
        torch.tensor([12]),
    )


logps = st.floats(-200.0, -0.01)
counts = st.integers(1, 40)


@st.composite
def pair_batches(draw: st.DrawFn) -> PairLogps:
    size = draw(st.integers(1, 4))
    columns = [doubles(*draw(st.lists(logps, min_size=size, max_size=size))) for _ in range(4)]
    tokens = [torch.tensor(draw(st.lists(counts, min_size=size, max_size=size))) for _ in range(2)]
    return make_pairs(columns[0].requires_grad_(), columns[1].requires_grad_(), columns[2], columns[3], *tokens)


def winner(method: Method, pairs: PairLogps) -> Tensor:
    return coefficients(method, pairs)[0]


def loser(method: Method, pairs: PairLogps) -> Tensor:
    return coefficients(method, pairs)[1]
