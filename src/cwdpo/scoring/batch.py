"""Encoded prompt groups, and what scoring them gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Batch", "EncodedGroup", "EncodedResponse", "ResponseLogits", "Scores"]


@dataclass(frozen=True)
class EncodedResponse:
    """One response as token ids.

    Attributes:
        ids: Token ids, with the end-of-turn token where it counts as part of the response.
        role: `chosen`, `rejected` or a probe kind.
        source: Where it comes from.
        difficulty: `hard`, `medium`, `easy` or None.
        key: Content digest of prompt, images and response: the key of the reference cache.
        score: How good something beside the model finds it, where the data say so.
    """

    ids: tuple[int, ...]
    role: str
    source: str
    difficulty: str | None
    key: str
    score: float | None = None


@dataclass(frozen=True)
class EncodedGroup:
    """One prompt as token ids and pixels, with its responses.

    Attributes:
        id: The row's id.
        origin: `file:row`, for messages.
        prefix_ids: Token ids of the prompt, image placeholders expanded, up to where the answer starts.
        token_types: Further per-token inputs of the prompt (`mm_token_type_ids`, `token_type_ids`).
        vision: What the processor made of the images of this prompt alone (`pixel_values`, `image_grid_thw`, …).
        responses: The K responses.
        image_key: Content digest of the images and of how they are processed; empty where unknown.
        altered: It is the twin of another group of its batch, with altered images.
        references: Gold answers: those of the row, or its chosen responses.
        facts: What else is known of the row. Like the references never seen by the model; rewards look at them.
    """

    id: str
    origin: str
    prefix_ids: tuple[int, ...]
    token_types: dict[str, tuple[int, ...]]
    vision: dict[str, Tensor]
    responses: tuple[EncodedResponse, ...]
    image_key: str = ""
    altered: bool = False
    references: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Batch:
    """Several encoded groups. Responses are counted through the batch in order: row r belongs to `owner[r]`.

    Twins with altered images come after all other groups, in the same order; their responses have roles of their own.
    """

    groups: tuple[EncodedGroup, ...]

    @property
    def prompts(self) -> int:
        """How many prompts it holds, twins not counted."""
        return sum(not g.altered for g in self.groups)

    @property
    def own(self) -> Batch:
        """The batch without twins; they come last, so all rows keep their numbers."""
        return Batch(tuple(g for g in self.groups if not g.altered))

    @property
    def responses(self) -> list[EncodedResponse]:
        """All responses, group by group."""
        return [r for g in self.groups for r in g.responses]

    @property
    def owner(self) -> list[int]:
        """For each response the index of its group."""
        return [i for i, g in enumerate(self.groups) for _ in g.responses]

    def rows(self, role: str) -> list[int]:
        """Indices of the responses of one role."""
        return [i for i, r in enumerate(self.responses) if r.role == role]

    def pairs(self, every_chosen: bool = False) -> tuple[list[int], list[int]]:
        """Return the rows of (chosen, rejected): every rejected response with its group's first chosen one, or each."""
        chosen: dict[int, list[int]] = {}
        responses, owner = self.responses, self.owner
        for row in self.rows("chosen"):
            chosen.setdefault(owner[row], []).append(row)
        winners, losers = list[int](), list[int]()
        for row, response in enumerate(responses):
            if response.role == "rejected" and owner[row] in chosen:
                found = chosen[owner[row]][: None if every_chosen else 1]
                winners += found
                losers += [row] * len(found)
        return winners, losers

    def pin_memory(self) -> Batch:
        """Pin the pixels' memory, as a DataLoader asks."""
        for group in self.groups:
            group.vision.update({k: v.pin_memory() for k, v in group.vision.items()})
        return self


@dataclass(frozen=True)
class ResponseLogits:
    """The model's logits at response positions only.

    Attributes:
        logits: `Float[positions, vocabulary]`, in the model's type.
        targets: `Long[positions]`, the response token that each position predicts.
        rows: `Long[positions]`, the response it belongs to.
        columns: `Long[positions]`, its place in the response.
        shape: (responses, longest response).
        tokens: `Bool[rows, width]`, which places of the model's input are not padding; None where each response had a
            forward pass of its own, without padding.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]
    tokens: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, responses: Sequence[EncodedResponse], tokens: Tensor | None = None) -> ResponseLogits:
        """Name logits that stand in the order of the responses' tokens."""
        targets = [token for r in responses for token in r.ids]
        rows = [row for row, r in enumerate(responses) for _ in r.ids]
        columns = [column for r in responses for column in range(len(r.ids))]
        told = (torch.tensor(values, device=logits.device) for values in (targets, rows, columns))
        return cls(logits, *told, shape=(len(responses), max(len(r.ids) for r in responses)), tokens=tokens)


@dataclass(frozen=True)
class Scores:
    """Teacher-forced scores of every response token, fp32, 0 at padding.

    Attributes:
        logps: `Float[responses, tokens]`, log π(y_l | x, y_<l) in nats. Differentiable.
        mask: `Bool[responses, tokens]`, true at response tokens.
        entropy: `Float[responses, tokens]`, entropy of the predictive distribution in nats. Differentiable.
        uniform: `Float[responses, tokens]`, mean log-probability over the vocabulary in nats. Differentiable.
        top1: `Float[responses, tokens]`, largest probability.
        correct: `Bool[responses, tokens]`, the argmax is the response's token.
    """

    logps: Tensor
    mask: Tensor
    entropy: Tensor
    uniform: Tensor
    top1: Tensor
    correct: Tensor

    @property
    def tokens(self) -> Tensor:
        """`Float[responses]`: response lengths in tokens."""
        return self.mask.sum(-1).to(self.logps.dtype)

    @property
    def logp_sum(self) -> Tensor:
        """`Float[responses]`: log π(y|x), summed over the response's tokens."""
        return self.logps.sum(-1)

    @property
    def logp_mean(self) -> Tensor:
        """`Float[responses]`: ℓ̄(y|x), mean log-probability per token (paper, §2.2)."""
        return self.logp_sum / self.tokens

    def mean_over_tokens(self, values: Tensor) -> Tensor:
        """`Float[responses]`: mean of a per-token quantity over each response's tokens."""
        return (values * self.mask).sum(-1) / self.tokens
