"""On-policy negatives written anew by the policy as it is now; all others stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cwdpo.data.schema import REJECTED, PromptGroup, Response
from cwdpo.files import write_jsonl
from cwdpo.negatives.build import Builder, Negatives, Plan
from cwdpo.negatives.candidates import Candidate
from cwdpo.negatives.generating_model import NegativePolicy, Weigher
from cwdpo.negatives.sources import make_sources
from cwdpo.recipe import ON_POLICY, EditorSection, SourceMix

__all__ = ["is_on_policy", "refresh_negatives"]


def is_on_policy(response: Response) -> bool:
    """Whether a response is a negative that the model wrote."""
    return response.role == REJECTED and response.source in ON_POLICY


def refresh_negatives(
    groups: Sequence[PromptGroup],
    mix: SourceMix,
    *,
    seed: int,
    folder: Path,
    policy: NegativePolicy,
    progress: Callable[[int, int], None] | None = None,
) -> Negatives:
    """Put new on-policy negatives in the place of the old ones.

    Every prompt stays, in its place. Where the policy now writes fewer usable texts than it did, old ones stay.

    Args:
        groups: Prompts with their negatives.
        mix: Settings, filter.
        seed: Fixes the draw.
        folder: Where texts and scores are kept, and `dropped.jsonl`.
        policy: The model as it is now.
        progress: Called with prompts done so far and their number.

    Returns:
        The prompts; under `counts` the new negatives by source, and as `old` the on-policy ones that stayed.
    """
    names = [name for name in mix.sources() if name in ON_POLICY]
    wishes = {g.id: [r.source for r in g.responses if is_on_policy(r)] for g in groups}
    kept = {g.id: [r.text for r in g.by_role(REJECTED) if not is_on_policy(r)] for g in groups}
    builder = Builder(groups, mix, seed, Plan(wishes, True, kept), names)
    none = EditorSection()
    sources = make_sources(
        groups, mix, seed=seed, folder=folder, policy=policy, editor=none, progress=progress, names=names
    )
    builder.ask(sources)
    weigher = Weigher(policy, folder, mix.batch_size) if mix.filter.logp is not None else None
    found: list[PromptGroup] = []
    counts: Counter[str] = Counter()
    for draw in builder.draw(weigher, progress):
        new = [candidate.response() for candidate in draw.taken.values()]
        counts.update(response.source for response in new)
        responses = _replaced(draw.group.responses, new, set(draw.taken))
        counts["old"] += sum(map(is_on_policy, responses)) - len(new)
        found.append(draw.group.with_responses(responses))
    for name, tally in builder.tallies.items():
        tally.used = counts[name]
    write_jsonl(folder / "dropped.jsonl", builder.dropped)
    return Negatives(found, dict(counts), builder.tallies, builder.dropped)


def _replaced(old: Sequence[Response], new: Sequence[Response], keys: set[str]) -> list[Response]:
    """Return responses with new ones of the same source in the place of on-policy ones."""
    waiting = {name: [r for r in new if r.source == name] for name in ON_POLICY}
    found: list[Response] = []
    for response in old:
        if not is_on_policy(response):
            found.append(response)
        elif waiting[response.source]:
            found.append(waiting[response.source].pop(0))
        elif Candidate(response.text, response.source).key not in keys:
            found.append(response)
    return found
