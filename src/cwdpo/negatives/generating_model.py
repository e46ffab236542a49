"""The model that a stage starts from, loaded when something has to be written or scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

__all__ = ["NegativePolicy", "PolicyJob", "ResponseScorer", "has_images"]


@dataclass(frozen=True)
class PolicyJob:
    """A batch of prompts, with arguments of `generate` to answer them, or the `path` of the scores to score them."""

    prompts: Sequence[PromptGroup]
    how: Mapping[str, Any]


def has_images(job: PolicyJob) -> bool:
    """Whether a batch has an image."""
    return any(group.images for group in job.prompts)


@dataclass(frozen=True)
class NegativePolicy:
    """The model that writes on-policy negatives and scores all of them.

    Attributes:
        load: Loads the model; called only if something has to be generated or scored.
        encoder: Its prompt encoder.
        digest: Content of the model; texts of another policy are not mistaken for its own.
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
        """What other processes help with (`Processes.lead`); rank 0 scores alone unless weights are sharded."""
        return {"generate": self.write, **({"score": self.score} if processes().in_step else {})}

    def write(self, job: PolicyJob) -> list[list[str]]:
        """Return what the model says to each prompt."""
        return generate(
            self.model,
            self.encoder.tokenizer,
            lambda prompts: processes().each(lambda: self.encoder.prompt_inputs(prompts, padding=True)),
            job.prompts,
            **job.how,
        )

    def score(self, job: PolicyJob) -> list[list[tuple[str, int]]]:
        """Score every response that was not scored before.

        Returns:
            Cache key and number of tokens of each response of each prompt.

        Raises:
            NonFiniteError: A log-probability is NaN or infinite.
        """
        team, cache = processes(), ReferenceCache(job.how["path"])
        groups = team.each(lambda: [self.encoder.encode(g) for g in job.prompts])
        if any(team.gather(cache.missing([r.key for g in groups for r in g.responses]))):
            cache.fill(self.model, self.scorer, [Batch(tuple(groups))])
        return [[(r.key, len(r.ids)) for r in g.responses] for g in groups]


class ResponseScorer:
    """ℓ̄ of responses under the policy, cached on disk by content: scored once, in fixed batches.

    Args:
        policy: The model.
        folder: Where the scores are kept, one file per model.
        batch_size: Prompts per batch.
    """

    def __init__(self, policy: NegativePolicy, folder: Path, batch_size: int) -> None:
        self._policy, self._batch_size, self._path = policy, batch_size, self.path(folder, policy.digest)
        self._cache = ReferenceCache(self._path)

    @staticmethod
    def path(folder: Path, digest: str) -> Path:
        """Return the file of a model's scores."""
        return folder / f"logps-{digest[:16]}.sqlite"

    def logp_means(
        self, groups: Sequence[PromptGroup], progress: Callable[[int, int], None] | None = None
    ) -> list[list[float]]:
        """Return ℓ̄ (nats per token) of every response of every group.

        Raises:
            NonFiniteError: A log-probability is NaN or infinite.
        """
        means: list[list[float]] = []
        starts = range(0, len(groups), self._batch_size)
        jobs = [PolicyJob(groups[start : start + self._batch_size], {"path": self._path}) for start in starts]
        for scored in processes().map("score", jobs, self._policy.score, has_images):
            sums = iter(self._cache.sums([key for responses in scored for key, _ in responses]).tolist())
            means += [[next(sums) / tokens for _, tokens in responses] for responses in scored]
            if progress is not None:
                progress(len(means), len(groups))
        return means
