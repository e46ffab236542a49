"""A source of negatives of your own: the caption of the picture that is described most like this one."""

# --8<-- [start:source]
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.source import Candidate, Source, SourceContext, gold_texts
from cwdpo.negatives.text import normalise


class NeighbourSource(Source):
    """The chosen responses of the images whose captions share most words with this one's, nearest first."""

    name: ClassVar[str] = "neighbour"

    overlap: float = Field(default=0.9, gt=0, le=1)
    """Captions that share more than this of their words are passed over: they may be right here too."""

    def candidates(self, group: PromptGroup, count: int, context: SourceContext) -> Sequence[Candidate]:
        """Return up to `count` candidates."""
        texts = context.once(self.name, lambda: sorted({other.chosen.text for other in context.rows}))
        gold = {normalise(text) for text in gold_texts(group)}
        own = set(normalise(group.chosen.text).split())

        def shared(text: str) -> float:
            words = set(normalise(text).split())
            return len(own & words) / len(own | words)

        others = [text for text in texts if normalise(text) not in gold and shared(text) <= self.overlap]
        return [Candidate(text, "medium") for text in sorted(others, key=lambda text: (-shared(text), text))[:count]]


# --8<-- [end:source]
