"""What every source of negatives has in common."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.files import text_digest
from cwdpo.negatives.text import normalise

__all__ = ["Candidate", "Source", "gold_texts", "seeded"]


@dataclass(frozen=True)
class Candidate:
    """A text that may become a rejected response.

    Attributes:
        text: The text.
        source: Name of the source, a field of `SourceMix`.
        difficulty: `hard`, `medium` or `easy` where the source knows.
        changed: Kinds of the facts that were changed against the chosen response, where the source knows.
        problem: Why the source itself found that it cannot be used.
    """

    text: str
    source: str
    difficulty: str | None = None
    changed: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def key(self) -> str:
        """What makes two candidates the same text."""
        return normalise(self.text) or self.text

    def response(self) -> Response:
        """Return the candidate as a rejected response."""
        return Response(self.text, REJECTED, self.source, self.difficulty)


class Source(Protocol):
    """Where candidates come from."""

    @property
    def name(self) -> str:
        """The field of `SourceMix` that holds its share."""
        ...

    @property
    def costly(self) -> bool:
        """Whether it is asked only for prompts that need it (a model has to write)."""
        ...

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return candidates by row id.

        A source may give more than `wanted` or none, and need not compare with gold responses: that is the filter's.
        What it gives for a row depends on the row, its settings and the seed alone, never on the other rows, except
        where other rows' texts are what it gives.

        Args:
            groups: Prompts with chosen responses.
            wanted: By row id, how many negatives it may have to give.
        """
        ...


def seeded(seed: int, identity: str, purpose: str) -> random.Random:
    """Return the source of chance for one row and purpose."""
    return random.Random(text_digest(str(seed), identity, purpose))


def gold_texts(group: PromptGroup) -> list[str]:
    """Return the gold answers of a prompt: its chosen responses and its references, each once."""
    return list(dict.fromkeys([*(r.text for r in group.by_role(CHOSEN)), *group.references]))
