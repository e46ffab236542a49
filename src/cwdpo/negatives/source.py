"""What a source of negatives is: its settings, its words and the texts that it proposes."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.files import text_digest
from cwdpo.negatives.text import normalise
from cwdpo.plugins import Registry
from cwdpo.recipe.endpoint_sections import EditorSection
from cwdpo.section import Section

if TYPE_CHECKING:
    from cwdpo.negatives.generating_model import NegativePolicy
    from cwdpo.recipe.negatives_sections import SourceMix

__all__ = ["SOURCES", "Candidate", "Source", "SourceContext", "gold_texts", "seeded"]


@dataclass(frozen=True)
class Candidate:
    """A text that may become a rejected response.

    Attributes:
        text: The text.
        difficulty: `hard`, `medium` or `easy`, if the source knows.
        changed: Kinds of the facts that differ from the chosen response, if the source knows.
        problem: Why the source itself found it unusable.
        source: Name of the source; filled in for it.
        score: What the data say of it.
    """

    text: str
    difficulty: str | None = None
    changed: tuple[str, ...] = ()
    problem: str | None = None
    source: str = ""
    score: float | None = None

    @property
    def key(self) -> str:
        """The same for two candidates that read the same."""
        return normalise(self.text) or self.text

    def response(self) -> Response:
        """Return the candidate as a rejected response."""
        return Response(self.text, REJECTED, self.source, self.difficulty, self.score)


@dataclass(frozen=True)
class SourceContext:
    """What a source may use beside the row and its own settings.

    Attributes:
        rows: All rows of the stage.
        mix: The stage's negatives section.
        seed: Fixes every draw.
        folder: Where texts written by models are kept, so that a killed run resumes.
        policy: The model that the stage starts from.
        editor: The endpoint of `negatives.editor`.
        progress: Told how many of the prompts are done.
        note: Told what is worth knowing beforehand, such as the cost.
        unfit: Says of a text why a prompt cannot be trained on with it, or None.
    """

    rows: Sequence[PromptGroup]
    mix: SourceMix
    seed: int
    folder: Path
    policy: NegativePolicy
    editor: EditorSection = field(default_factory=EditorSection)
    progress: Callable[[int, int], None] | None = None
    note: Callable[[str], None] | None = None
    unfit: Callable[[PromptGroup, str], str | None] | None = None
    _shared: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returned when it was first called under this name."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]


class Source(Section):
    """A source of negatives. Fields are its settings, set in a recipe beside the shares.

    What it proposes for a row depends on the row, its settings and the seed alone (and on the set of all rows where
    their texts are what it proposes), so that a killed run ends with the same bytes. Filters, shares and bookkeeping
    are not its business.
    """

    name: ClassVar[str]
    """Name of its share; that of a module of ours is the module's name."""
    costly: ClassVar[bool] = False
    """Whether a model has to write, so that only prompts that need it are asked for."""
    on_policy: ClassVar[bool] = False
    """Whether the model in training writes, so that `refresh` has it write again."""
    needs_editor: ClassVar[bool] = False
    """Whether it asks `negatives.editor`."""
    default_share: ClassVar[float] = 0.0
    """Share if a recipe does not say."""
    order: ClassVar[int] = 100
    """Place when shares are drawn; ours come first, so that a new source leaves their draws as they are."""

    @classmethod
    def words(cls) -> str:
        """Return what it is in a sentence or two: the first paragraph of its docstring."""
        return " ".join((inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]).split())

    def propose(
        self, groups: Sequence[PromptGroup], wanted: Mapping[str, int], context: SourceContext
    ) -> Mapping[str, Sequence[Candidate]]:
        """Return candidates by row id. It may return more than `wanted`, fewer, or gold responses.

        Args:
            groups: Prompts with chosen responses.
            wanted: How many negatives it may have to provide, by row id.
            context: Seed, folder, models.
        """
        return {group.id: self.candidates(group, wanted[group.id], context) for group in groups}

    def candidates(self, group: PromptGroup, count: int, context: SourceContext) -> Sequence[Candidate]:
        """Return candidates for one row: what a source defines that works row by row."""
        raise NotImplementedError(f"{type(self).__name__} defines neither propose nor candidates")


SOURCES = Registry("source of negatives", "cwdpo.negatives.sources", Source)
"""All sources by name."""


def seeded(seed: int, identity: str, purpose: str) -> random.Random:
    """Return the RNG of a row for a purpose."""
    return random.Random(text_digest(str(seed), identity, purpose))


def gold_texts(group: PromptGroup) -> list[str]:
    """Return the gold answers of a prompt: its chosen responses and its references, each once."""
    return list(dict.fromkeys([*(r.text for r in group.by_role(CHOSEN)), *group.references]))
