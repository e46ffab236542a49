"""The model that a stage starts from, loaded when something has to be written or scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cwdpo.data.schema import PromptGroup
from cwdpo.models.generation import generate
from cwdpo.processes import processes
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.reference import ReferenceCache
from cwdpo.scoring.scorer import AutoScorer, Scorer

__all__ = ["Asked", "NegativePolicy", "Weighed", "Weigher", "has_images"]


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
class Weighed:
    """A batch of prompts whose responses are to be scored.

    Attributes:
        prompts: The prompts.
        scores: The file in which the scores are kept.
    """

    prompts: Sequence[PromptGroup]
    scores: Path


def has_images(asked: Asked | Weighed) -> bool:
    """Whether there is a picture in a batch."""
    return any(group.images for group in asked.prompts)


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

    @property
    def help(self) -> dict[str, Callable[[Any], Any]]:
        """What other processes help with, see `Processes.lead`; rank 0 weighs by itself where it holds the model."""
        return {"generate": self.write, **({"weigh": self.weigh} if processes().in_step else {})}

    def write(self, asked: Asked) -> list[list[str]]:
        """Return what the model says to each prompt."""
        return generate(
            self.model,
            self.encoder.tokenizer,
            lambda prompts: processes().each(lambda: self.encoder.prompt_inputs(prompts, padding=True)),
            asked.prompts,
            seed=asked.seed,
            **asked.settings,
        )

    def weigh(self, asked: Weighed) -> list[list[tuple[str, int]]]:
        """Score every response of the prompts that was not scored before.

        Returns:
            For each prompt, under which keys its responses' scores are kept, and how many tokens they have.

        Raises:
            NonFiniteError: A log-probability is NaN or infinite.
        """
        team, cache = processes(), ReferenceCache(asked.scores)
        groups = team.each(lambda: [self.encoder.encode(g) for g in asked.prompts])
        if any(team.gather(cache.missing([r.key for g in groups for r in g.responses]))):
            cache.fill(self.model, self.scorer, [Batch(tuple(groups))])
        return [[(r.key, len(r.ids)) for r in g.responses] for g in groups]


class Weigher:
    """ℓ̄ of responses under the policy, kept on disk by content: scored once, in fixed batches.

    Args:
        policy: The model.
        folder: Where the scores are kept, one file a model.
        batch_size: Prompts at once.
    """

    def __init__(self, policy: NegativePolicy, folder: Path, batch_size: int) -> None:
        self._policy, self._batch_size, self._path = policy, batch_size, self.path(folder, policy.digest)
        self._cache = ReferenceCache(self._path)

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
        starts = range(0, len(groups), self._batch_size)
        asked = [Weighed(groups[start : start + self._batch_size], self._path) for start in starts]
        for kept in processes().map("weigh", asked, self._policy.weigh, has_images):
            sums = iter(self._cache.sums([key for row in kept for key, _ in row]).tolist())
            found += [[next(sums) / tokens for _, tokens in row] for row in kept]
            if progress is not None:
                progress(len(found), len(groups))
        return found
