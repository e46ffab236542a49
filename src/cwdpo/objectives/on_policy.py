"""GRPO and PPO: responses that the policy sampled, and the clipped surrogate on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cwdpo import losses
from cwdpo.objectives.base import ObjectiveOutput, Tally
from cwdpo.recipe import Stage2Section
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


class OnPolicyObjective:
    """The clipped surrogate on sampled responses.

    `grpo` takes the mean over the tokens of a response and then over responses, and adds the KL divergence to the
    reference; `ppo` takes the mean over all tokens of the update (its rewards hold the divergence already).
    """

    needs_reference = False  # what it needs of the reference comes with the responses
    tokenwise_reference = False
    twin_reference = True
    gated = False
    twin = None

    def __init__(self, settings: Stage2Section) -> None:
        self.settings = settings
        self._per_response = settings.objective == "grpo"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Count prompts, responses and their tokens."""
        responses = batch.responses
        tokens = sum(len(r.ids) for r in responses)
        return {"prompts": float(batch.prompts), "responses": float(len(responses)), "tokens": float(tokens)}

    def gate(self, sums: Mapping[str, float], totals: Mapping[str, float]) -> bool | None:
        """No term depends on the whole batch."""
        return None

    def __call__(
        self, batch: Batch, scores: Scores, reference: Tensor | None, totals: Mapping[str, float], gate: bool | None
    ) -> ObjectiveOutput:
        """Compute the micro-batch's share of the loss. See `Objective.__call__`."""
        s, responses = self.settings, sampled(batch)
        logps, mask = scores.logps, scores.mask
        advantages = _by_token([r.advantages for r in responses], logps)
        old = logps.detach()
        if responses[0].old is not None:
            old = _by_token([r.old for r in responses], logps)
        per_token, cut = losses.clipped_surrogate(logps, old, advantages, clip=s.clip)
        tally = Tally()
        if responses[0].reference is not None:
            divergence = losses.kl_to_reference(logps, _by_token([r.reference for r in responses], logps))
            tally.add("kl", divergence[mask])
            if s.objective == "grpo":
                per_token = per_token + s.kl * divergence
        if self._per_response:
            parts, total = scores.mean_over_tokens(per_token), totals["responses"]
        else:
            parts, total = per_token[mask], totals["tokens"]
        tally.add("surrogate", parts)
        tally.add("clip_ratio", cut[mask].float())
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
