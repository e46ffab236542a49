"""PPO's value function: linear in the policy's hidden state, from which it learns without changing it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cwdpo.errors import ModelError
from cwdpo.processes import processes
from cwdpo.scoring.batch import Batch, ResponseLogits
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import Scorer

__all__ = ["Critic", "scores_and_features"]


class Critic:
    """V(s) = w·φ(s), φ the hidden state before the output layer at length 1, and a constant beside it.

    Args:
        learning_rate: Step on the mean of ½(V − return)²; stable up to 1, because no φ is longer than √2.

    Attributes:
        weight: `Float[features + 1]`; None until something was learnt: V is 0 everywhere.
    """

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self.weight: Tensor | None = None

    def values(self, features: Tensor) -> Tensor:
        """Return V of each state.

        Args:
            features: `Float[..., features]`, as `scores_and_features` gives them.
        """
        if self.weight is None:
            return features.new_zeros(features.shape[:-1])
        weight = self.weight.to(features.device)
        return features @ weight[:-1] + weight[-1]

    def learn(self, features: Tensor, returns: Tensor) -> None:
        """Make one step towards the returns, the same in all processes: over what any of them has seen.

        Args:
            features: `Float[states, features]`, of this process.
            returns: `Float[states]`.
        """
        if self.weight is None:
            self.weight = features.new_zeros(features.shape[-1] + 1)
        error = returns - self.values(features)
        own = torch.cat([features.T @ error, error.sum()[None]])
        pulls, states = zip(*processes().gather((own.cpu(), len(error))), strict=True)
        pull = torch.stack(pulls).sum(0).to(own.device) / sum(states)
        # Half the step: φ and the constant together have length √2.
        self.weight = self.weight.to(pull.device) + 0.5 * self._learning_rate * pull


def scores_and_features(model: Any, scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Score responses under the policy, and take the hidden states on the way.

    Args:
        model: The policy, in evaluation mode and without gradients.
        scorer: How responses are scored.
        batch: The responses.

    Returns:
        `Float[responses, tokens]`, log-probabilities; `Bool[responses, tokens]`, where there are tokens;
        `Float[responses, tokens, features]`, the hidden state that predicts each token, at length 1.
    """
    with _hidden_behind_logits(model) as head:
        found = scorer(model, batch)
    features = found.logits[:, -head.width :].float()
    logits = found.logits[:, : -head.width]
    scores = scores_from_logits(ResponseLogits(logits, found.targets, found.rows, found.columns, found.shape))
    laid_out = features.new_zeros((*found.shape, head.width))
    laid_out[found.rows, found.columns] = torch.nn.functional.normalize(features, dim=-1)
    return scores.logps, scores.mask, laid_out


class _Head:
    width = 0


@contextmanager
def _hidden_behind_logits(model: Any) -> Generator[_Head]:
    """Make the output layer hand its input on, behind the logits: scorers pick both at the same places.

    Raises:
        ModelError: The model has no output layer that could be watched.
    """
    layer, head = model.get_output_embeddings(), _Head()
    if layer is None:
        raise ModelError(
            f"{type(model).__name__}: has no output layer whose input ppo's value function could read; use grpo"
        )

    def hand_on(module: Any, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        head.width = given[0].shape[-1]
        return torch.cat([logits, given[0].to(logits.dtype)], -1)

    handle = layer.register_forward_hook(hand_on)
    try:
        yield head
    finally:
        handle.remove()
