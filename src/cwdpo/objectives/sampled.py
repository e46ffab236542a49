"""Responses that the policy sampled, and a method's loss on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cwdpo.methods.on_policy import OnPolicyMethod, TokenLogps, is_clipped, kl_to_reference
from cwdpo.objectives.objective import Objective, ObjectiveOutput, Tally
from cwdpo.scoring.batch import Batch, EncodedResponse, Scores

__all__ = ["OnPolicyObjective", "SampledResponse"]


@dataclass(frozen=True, kw_only=True)
class SampledResponse(EncodedResponse):
    """A response that the policy sampled, and what its loss is made of.

    Attributes:
        reward: What it earned.
        advantages: Of each token.
        old: log π_old of each token; None where the policy that samples is the one that is trained.
        reference: log π_ref of each token; None without a reference.
        value_error: Mean squared error of the value function over its tokens; None without one.
    """

    role: str = "sampled"
    source: str = "policy"
    difficulty: str | None = None
    key: str = ""
    reward: float
    advantages: tuple[float, ...]
    old: tuple[float, ...] | None = None
    reference: tuple[float, ...] | None = None
    value_error: float | None = None


class OnPolicyObjective(Objective):
    """The mean of a method's loss per token: over the tokens of a response and then over responses, or over all tokens.

    What it needs of the reference comes with the responses.
    """

    requires = "response"

    def __init__(self, method: OnPolicyMethod) -> None:
        self.method = method

    def counts(self, batch: Batch) -> dict[str, float]:
        """Count prompts, responses and their tokens."""
        responses = batch.responses
        tokens = sum(len(r.ids) for r in responses)
        return {"prompts": float(batch.prompts), "responses": float(len(responses)), "tokens": float(tokens)}

    def __call__(
        self, batch: Batch, scores: Scores, reference: Tensor | None, totals: Mapping[str, float], gate: bool | None
    ) -> ObjectiveOutput:
        """Compute the micro-batch's share of the loss. See `Objective.__call__`."""
        responses, logps, mask = sampled(batch), scores.logps, scores.mask
        compared = responses[0].reference is not None
        tokens = TokenLogps(
            logps=logps,
            old=logps.detach() if responses[0].old is None else _by_token([r.old for r in responses], logps),
            advantages=_by_token([r.advantages for r in responses], logps),
            reference=_by_token([r.reference for r in responses], logps) if compared else None,
        )
        losses, tally = self.method.loss(tokens), Tally()
        if self.method.per_response:
            parts, total = scores.mean_over_tokens(losses), totals["responses"]
        else:
            parts, total = losses[mask], totals["tokens"]
        tally.add("surrogate", parts)
        tally.add("clip_ratio", is_clipped(tokens, clip=self.method.clip)[mask].float())
        if tokens.reference is not None:
            tally.add("kl", kl_to_reference(logps.detach(), tokens.reference)[mask])
        self._add_metrics(tally, batch, scores)
        return ObjectiveOutput(parts.sum() / total, tally)

    def _add_metrics(self, tally: Tally, batch: Batch, scores: Scores) -> None:
        responses = sampled(batch)
        rewards = torch.tensor([[r.reward for r in sampled(Batch((group,)))] for group in batch.groups])
        tally.add("reward", rewards)
        if rewards.shape[1] > 1:
            tally.add("reward_std", rewards.std(-1))
            tally.add("frac_reward_zero_std", (rewards.std(-1) < 1e-6).float())
        tally.add("completions/mean_length", scores.tokens)
        tally.add("entropy", scores.entropy[scores.mask])
        if responses[0].value_error is not None:
            tally.add("value_loss", torch.tensor([r.value_error for r in responses]))

    def value(self, means: Mapping[str, float]) -> float:
        """Return the mean surrogate."""
        return means["surrogate"]


def sampled(batch: Batch) -> list[SampledResponse]:
    """Return the responses of a batch, all of which were sampled."""
    found = [r for r in batch.responses if isinstance(r, SampledResponse)]
    assert len(found) == len(batch.responses) > 0
    return found


def _by_token(rows: Sequence[Any], like: Tensor) -> Tensor:
    """Return `Float[responses, tokens]`, 0 at padding."""
    tensors = [torch.tensor(row, dtype=like.dtype) for row in rows]
    return pad_sequence(tensors, batch_first=True).to(like.device)
