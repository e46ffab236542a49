"""On-policy negatives written again by the policy as it is now; all others stay."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from cwdpo.data.schema import REJECTED, PromptGroup, Response
from cwdpo.files import whole_file
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
    names, made = context.mix.on_policy, Regenerated([], BuildCounts(), 0)
    rejected = {g.id: g.by_role(REJECTED) for g in context.rows}
    wishes = {key: [r.source for r in responses if r.source in names] for key, responses in rejected.items()}
    present = {key: [r.text for r in responses if r.source not in names] for key, responses in rejected.items()}
    with whole_file(context.folder / "dropped.jsonl") as drops:
        builder = NegativeBuilder(context, made.counts, drops)
        draws = builder.draw(context.rows, names, wishes, strict=True, present=present)
    for draw in draws:
        new = made.counts.use(draw.taken.values())
        responses = _replaced(draw.group.responses, new, draw.taken.keys(), names)
        made.old += sum(r.role == REJECTED and r.source in names for r in responses) - len(new)
        made.groups.append(draw.group.with_responses(responses))
    return made


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
