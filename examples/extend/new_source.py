"""A source of negatives of your own: the caption of the picture that is described most like this one."""

# --8<-- [start:source]
from collections.abc import Mapping, Sequence

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.candidates import Candidate, gold_texts
from cwdpo.negatives.text import normalise


class NeighbourSource:
    """The chosen responses of other pictures that share most words with this one's, nearest first."""

    name = "neighbour"
    costly = False  # no model has to write: every row may be asked

    def __init__(self, groups: Sequence[PromptGroup]) -> None:
        self._texts = sorted({group.chosen.text for group in groups})  # no order of the rows

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return up to as many candidates for each row as are wanted."""
        return {group.id: self._nearest(group, wanted[group.id]) for group in groups}

    def _nearest(self, group: PromptGroup, count: int) -> list[Candidate]:
        gold = {normalise(text) for text in gold_texts(group)}
        own = set(normalise(group.chosen.text).split())

        def distance(text: str) -> tuple[float, str]:
            words = set(normalise(text).split())
            return 1 - len(own & words) / len(own | words), text

        others = sorted((text for text in self._texts if normalise(text) not in gold), key=distance)
        return [Candidate(text, self.name, "medium") for text in others[:count]]


# --8<-- [end:source]


# --8<-- [start:use]
def with_neighbours(groups: Sequence[PromptGroup], count: int = 1) -> list[PromptGroup]:
    """Return the rows with their neighbours as rejected responses: data for a trainer, or for `write_jsonl`."""
    found = NeighbourSource(groups).propose(groups, {group.id: count for group in groups})
    return [g.with_responses([*g.responses, *(c.response() for c in found[g.id])]) for g in groups]


# --8<-- [end:use]
