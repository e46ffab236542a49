"""The model that a stage starts from, loaded when something has to be written or scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cwdpo.data.schema import PromptGroup
from cwdpo.models.generation import generate
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.encode import PromptEncoder
from cwdpo.scoring.reference import ReferenceCache, Scorer
from cwdpo.scoring.shared import AutoScorer

__all__ = ["Asked", "NegativePolicy", "Weigher"]


@dataclass(frozen=True)
class Asked:
    """A batch of prompts to answer.

    Attributes:
        prompts: The prompts.
        seed: Fixes the sampling.
        settings: Arguments of `generate`.
    """

    prompts: Sequence[PromptGroup]
    seed: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class NegativePolicy:
    """The model that writes on-policy negatives and weighs all of them.

    Attributes:
        load: Loads the model; called only if something has to be generated or scored.
        encoder: Its prompt encoder.
        digest: Content of the model, so that what another policy wrote is not taken for its own.
        scorer: How responses are scored.
    """

    load: Callable[[], Any]
    encoder: PromptEncoder
    digest: str
    scorer: Scorer = field(default_factory=AutoScorer)

    @cached_property
    def model(self) -> Any:
        """The model, loaded once."""
        return self.load()

    def write(self, asked: Asked) -> list[list[str]]:
        """Return what the model says to each prompt."""
        return generate(
            self.model,
            self.encoder.tokenizer,
            lambda prompts: self.encoder.prompt_inputs(prompts, padding=True),
            asked.prompts,
            seed=asked.seed,
            **asked.settings,
        )


class Weigher:
    """ℓ̄ of responses under the policy, kept on disk by content: scored once, in fixed batches.

    Args:
        policy: The model.
        folder: Where the scores are kept, one file a model.
        batch_size: Prompts at once.
    """

    def __init__(self, policy: NegativePolicy, folder: Path, batch_size: int) -> None:
        self._policy, self._batch_size = policy, batch_size
        self._cache = ReferenceCache(self.path(folder, policy.digest))

    @staticmethod
    def path(folder: Path, digest: str) -> Path:
        """Return the file in which the scores of a model are kept."""
        return folder / f"logps-{digest[:16]}.sqlite"

    def logp_means(
        self, groups: Sequence[PromptGroup], progress: Callable[[int, int], None] | None = None
    ) -> list[list[float]]:
        """Return ℓ̄ (nats per token) of every response of every group.

        Raises:
            NonFiniteError: A log-probability is NaN or infinite.
        """
        found: list[list[float]] = []
        for start in range(0, len(groups), self._batch_size):
            part = [self._policy.encoder.encode(g) for g in groups[start : start + self._batch_size]]
            keys = [r.key for g in part for r in g.responses]
            if self._cache.missing(keys):
                self._cache.fill(self._policy.model, self._policy.scorer, [Batch(tuple(part))])
            sums = iter(self._cache.sums(keys).tolist())
            found += [[next(sums) / len(r.ids) for r in g.responses] for g in part]
            if progress is not None:
                progress(len(found), len(groups))
        return found
