"""On-policy negatives written again by the policy as it is now; all others stay."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from cwdpo.data.schema import REJECTED, PromptGroup, Response
from cwdpo.files import write_jsonl
from cwdpo.negatives.build import BuildCounts, NegativeBuilder
from cwdpo.negatives.source import Candidate, SourceContext

__all__ = ["Regenerated", "regenerate_negatives"]


@dataclass
class Regenerated:
    """Prompts with their negatives after a refresh.

    Attributes:
        groups: All prompts, in their places.
        counts: New negatives by source.
        old: On-policy negatives that stayed.
    """

    groups: list[PromptGroup]
    counts: BuildCounts
    old: int


def regenerate_negatives(context: SourceContext) -> Regenerated:
    """Replace on-policy negatives by new ones. Where the policy now writes fewer usable texts, old ones stay.

    Args:
        context: Prompts with their negatives; settings, seed, and the model as it is now. Texts, scores and
            `dropped.jsonl` go to its folder.
    """
    names, counts = context.mix.on_policy, BuildCounts()
    written = {g.id: [r for r in g.by_role(REJECTED) if r.source in names] for g in context.rows}
    others = {g.id: [r.text for r in g.by_role(REJECTED) if r.source not in names] for g in context.rows}
    wishes = {identity: [r.source for r in responses] for identity, responses in written.items()}
    builder = NegativeBuilder(context.rows, context, wishes, True, counts)
    builder.ask(names)
    groups: list[PromptGroup] = []
    total = 0
    for draw in builder.draw(others):
        new = [candidate.response() for candidate in draw.taken.values()]
        counts.used.update(response.source for response in new)
        groups.append(draw.group.with_responses(_replaced(draw.group.responses, new, draw.taken.keys(), names)))
        total += sum(r.source in names for r in groups[-1].by_role(REJECTED))
    for name, source in counts.by_source.items():
        source.used = counts.used[name]
    write_jsonl(context.folder / "dropped.jsonl", builder.dropped)
    return Regenerated(groups, counts, total - counts.used.total())


def _replaced(old: Sequence[Response], new: Sequence[Response], keys: Set[str], names: Sequence[str]) -> list[Response]:
    """Return responses with new ones of the same source in place of on-policy ones."""
    waiting = {name: [r for r in new if r.source == name] for name in names}
    responses: list[Response] = []
    for response in old:
        if response.role != REJECTED or response.source not in names:
            responses.append(response)
        elif waiting[response.source]:
            responses.append(waiting[response.source].pop(0))
        elif Candidate(response.text).key not in keys:
            responses.append(response)
    return responses
