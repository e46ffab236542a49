"""From logits to log-probabilities without ever holding positions × vocabulary in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cwdpo.scoring.batch import ResponseLogits, Scores

__all__ = ["scores_from_logits", "token_scores"]

CHUNK_BYTES = 64 * 2**20
"""Largest fp32 block of positions × vocabulary that is held at once, forward or backward."""


def _chunks(positions: int, vocabulary: int) -> range:
    return range(0, positions, max(1, CHUNK_BYTES // (4 * vocabulary)))


class _TokenScores(torch.autograd.Function):
    """log p of the target, entropy, mean log p over the vocabulary; softmax recomputed chunk by chunk in backward.

    With p = softmax(z): ∇ log p_y = e_y − p, ∇ H = −p (log p + H), ∇ mean log p = 1/V − p.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        n, vocabulary = logits.shape
        chunks = _chunks(n, vocabulary)
        logp, entropy, uniform, top1, lse = (
            torch.empty(n, dtype=torch.float32, device=logits.device) for _ in range(5)
        )
        correct = torch.empty(n, dtype=torch.bool, device=logits.device)
        for start in chunks:
            part = slice(start, start + chunks.step)
            z = logits[part].float()
            norm = z.logsumexp(-1)
            log_p = z - norm[:, None]
            best, index = log_p.max(-1)
            lse[part] = norm
            logp[part] = log_p.gather(-1, targets[part, None]).squeeze(-1)
            entropy[part] = torch.special.entr(log_p.exp()).sum(-1)
            uniform[part] = log_p.mean(-1)
            top1[part] = best.exp()
            correct[part] = index == targets[part]
        ctx.save_for_backward(logits, targets, lse, entropy)
        ctx.mark_non_differentiable(top1, correct)
        ctx.set_materialize_grads(False)
        return logp, entropy, uniform, top1, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor, None]:
        g_logp, g_entropy, g_uniform = grad_outputs[:3]
        logits, targets, lse, entropy = ctx.saved_tensors
        n, vocabulary = logits.shape
        grad = torch.empty_like(logits)
        chunks = _chunks(n, vocabulary)
        for start in chunks:
            part = slice(start, start + chunks.step)
            log_p = logits[part].float() - lse[part, None]
            p = log_p.exp()
            out = torch.zeros_like(p)
            if g_logp is not None:
                out -= p * g_logp[part, None]
                out.scatter_add_(-1, targets[part, None], g_logp[part, None])
            if g_entropy is not None:
                out += torch.where(p > 0, -p * (log_p + entropy[part, None]), 0.0) * g_entropy[part, None]
            if g_uniform is not None:
                out += (1.0 / vocabulary - p) * g_uniform[part, None]
            grad[part] = out.to(grad.dtype)
        return grad, None


def token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Score one target token a position, in fp32.

    Args:
        logits: `Float[positions, vocabulary]`, any floating type.
        targets: `Long[positions]`.

    Returns:
        logp of the target, entropy, mean log-probability over the vocabulary (all nats, differentiable), largest
        probability, and whether the argmax is the target; each `[positions]`.
    """
    return _TokenScores.apply(logits, targets)  # type: ignore[no-any-return]


def scores_from_logits(found: ResponseLogits) -> Scores:
    """Lay out per-token scores as one row a response."""
    logp, entropy, uniform, top1, correct = token_scores(found.logits, found.targets)
    place = (found.rows, found.columns)

    def rows(values: Tensor) -> Tensor:
        return values.new_zeros(found.shape).index_put(place, values)

    return Scores(
        logps=rows(logp),
        mask=rows(torch.ones_like(correct)),
        entropy=rows(entropy),
        uniform=rows(uniform),
        top1=rows(top1),
        correct=rows(correct),
    )
