"""Chunked scores against plain autograd, with chunk boundaries in the middle of the rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cwdpo.scoring import logprobs as module
from cwdpo.scoring.batch import ResponseLogits
from cwdpo.scoring.logprobs import scores_from_logits, token_scores


def plain(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = torch.log_softmax(logits, -1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1), log_p.mean(-1)


def test_by_hand() -> None:
    """Logits (0, log 3): p = (1/4, 3/4)."""
    logits = torch.tensor([[0.0, math.log(3.0)]], requires_grad=True)
    logp, entropy, uniform, top1, correct = token_scores(logits, torch.tensor([0]))
    assert logp.item() == pytest.approx(-math.log(4), abs=1e-6)
    assert entropy.item() == pytest.approx(math.log(4) / 4 + 0.75 * math.log(4 / 3), abs=1e-6)
    assert uniform.item() == pytest.approx((-math.log(4) + math.log(0.75)) / 2, abs=1e-6)
    assert top1.item() == pytest.approx(0.75, abs=1e-6)
    assert not correct.item()
    logp.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.75]]))  # e_y - p


@pytest.mark.parametrize("rows_a_chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("which", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2, -3)])
def test_values_and_gradients(rows_a_chunk: int, which: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = 11
    monkeypatch.setattr(module, "CHUNK_BYTES", rows_a_chunk * 4 * vocabulary)
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, vocabulary)).requires_grad_()
    double = logits.detach().double().requires_grad_()
    targets = torch.randint(vocabulary, (7,))
    weights = torch.randn(7)
    ours = token_scores(logits, targets)
    expected = plain(double, targets)
    for found, wanted in zip(ours[:3], expected, strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=0, atol=3e-6)
    torch.testing.assert_close(ours[3], double.softmax(-1).max(-1).values.float())
    assert ours[4].tolist() == (double.argmax(-1) == targets).tolist()
    sum(w * (weights * value).sum() for w, value in zip(which, ours[:3], strict=True) if w).backward()  # type: ignore[union-attr]
    sum(w * (weights * value).sum() for w, value in zip(which, expected, strict=True) if w).backward()  # type: ignore[union-attr]
    assert logits.grad is not None and double.grad is not None
    assert double.grad.abs().max() > 1e-2
    torch.testing.assert_close(logits.grad, double.grad.float(), rtol=0, atol=3e-6)


def test_half_precision_is_scored_in_single() -> None:
    torch.manual_seed(1)
    logits = (4 * torch.randn(5, 50)).bfloat16().requires_grad_()
    targets = torch.randint(50, (5,))
    single = logits.detach().float().requires_grad_()
    logp = token_scores(logits, targets)[0]
    expected = plain(single, targets)[0]
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp, expected, rtol=0, atol=2e-6)
    logp.sum().backward()
    expected.sum().backward()
    assert logits.grad is not None and single.grad is not None
    torch.testing.assert_close(logits.grad.float(), single.grad, rtol=1e-2, atol=1e-3)


def test_a_token_that_cannot_be_keeps_the_gradient_finite() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    logp, entropy, *_ = token_scores(logits, torch.tensor([1]))
    (logp + entropy).sum().backward()
    assert entropy.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[0, 2] == 0


def test_layout_in_rows() -> None:
    """Two responses of 1 and 2 tokens, uniform over 4: log p = -log 4, entropy = log 4."""
    found = ResponseLogits(
        logits=torch.zeros(3, 4),
        targets=torch.tensor([0, 1, 2]),
        rows=torch.tensor([0, 1, 1]),
        columns=torch.tensor([0, 0, 1]),
        shape=(2, 2),
    )
    scores = scores_from_logits(found)
    assert scores.mask.tolist() == [[True, False], [True, True]]
    assert scores.tokens.tolist() == [1.0, 2.0]
    torch.testing.assert_close(scores.logp_sum, torch.tensor([-math.log(4), -2 * math.log(4)]))
    torch.testing.assert_close(scores.logp_mean, torch.full((2,), -math.log(4)))
    torch.testing.assert_close(scores.mean_over_tokens(scores.entropy), torch.full((2,), math.log(4)))
    assert scores.logps[0, 1] == scores.entropy[0, 1] == scores.top1[0, 1] == 0
    assert scores.correct.tolist() == [[True, False], [False, False]]  # ties: the argmax is token 0
