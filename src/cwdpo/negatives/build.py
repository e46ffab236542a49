"""Rejected responses for a stage: proposed by several sources, filtered, drawn by share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.errors import DataError
from cwdpo.files import to_json, whole_file
from cwdpo.negatives.filters import CandidateFilter, FilterResult
from cwdpo.negatives.generating_model import ResponseScorer
from cwdpo.negatives.source import Candidate, SourceContext, seeded

__all__ = [
    "BuildCounts",
    "Draw",
    "NegativeBuilder",
    "Regenerated",
    "SourceCounts",
    "make_negatives",
    "regenerate_negatives",
]

_CHUNK = 4096
"""Prompts in memory at a time, unless a model has to write or score."""


@dataclass
class SourceCounts:
    """What became of one source's candidates.

    Attributes:
        proposed: Candidates looked at.
        identical: Those that read like a gold response.
        suspects: Those that may be right (identical ones included).
        exact: Those known to be right or wrong (on `scenes`).
        right: Those that are right (on `scenes`).
        right_suspects: Those that are right and suspects (on `scenes`).
        dropped: Candidates that a filter dropped.
        used: Negatives that came from this source.
        length_ratio: Sum over candidates of their length in words relative to the chosen response.
    """

    proposed: int = 0
    identical: int = 0
    suspects: int = 0
    exact: int = 0
    right: int = 0
    right_suspects: int = 0
    dropped: int = 0
    used: int = 0
    length_ratio: float = 0.0

    def add(self, result: FilterResult) -> None:
        """Count one candidate."""
        self.proposed += 1
        self.identical += result.identical
        self.suspects += result.suspect
        self.exact += result.right is not None
        self.right += bool(result.right)
        self.right_suspects += bool(result.right) and result.suspect
        self.dropped += result.reason is not None
        self.length_ratio += result.length_ratio


@dataclass
class BuildCounts:
    """What is counted while negatives are made.

    Attributes:
        used: Negatives by source, and under `none` the prompts that got none.
        by_source: What became of the candidates.
        dropped: Candidates that a filter dropped.
    """

    used: Counter[str] = field(default_factory=Counter[str])
    by_source: dict[str, SourceCounts] = field(default_factory=dict[str, SourceCounts])
    dropped: int = 0

    def use(self, candidates: Iterable[Candidate]) -> list[Response]:
        """Count candidates as used, and return them as responses."""
        responses = [candidate.response() for candidate in candidates]
        for response in responses:
            self.used[response.source] += 1
            self.by_source[response.source].used += 1
        return responses

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return what became of the candidates, as plain values."""
        return {name: asdict(counts) for name, counts in self.by_source.items()}


@dataclass
class Draw:
    """The draw of one prompt's negatives.

    Attributes:
        group: The prompt.
        wishes: Names of the sources that are still to give one.
        left: Candidates left, by source.
        strict: A wish goes to its source alone; otherwise any other source stands in.
        refused: Keys that are not to be taken.
        taken: What was taken, by key.
    """

    group: PromptGroup
    wishes: list[str]
    left: dict[str, list[Candidate]]
    strict: bool
    refused: set[str]
    taken: dict[str, Candidate] = field(default_factory=dict[str, Candidate])

    def take(self) -> list[Candidate]:
        """Take one candidate per wish, from the source wished for while it lasts; no text twice."""
        new: list[Candidate] = []
        for wish in self.wishes:
            fresh = (c for c in self._in_order(wish) if c.key not in self.taken and c.key not in self.refused)
            if (candidate := next(fresh, None)) is not None:
                self.taken[candidate.key] = candidate
                new.append(candidate)
        self.wishes = []
        return new

    def _in_order(self, wish: str) -> Iterator[Candidate]:
        for name in (wish, *(n for n in self.left if n != wish and not self.strict)):
            while self.left[name]:
                yield self.left[name].pop()

    def refuse(self, candidate: Candidate) -> None:
        """Put a candidate back for good, and wish for another from its source."""
        del self.taken[candidate.key]
        self.refused.add(candidate.key)
        self.wishes.append(candidate.source)


class NegativeBuilder:
    """Asks sources for candidates, filters them and draws.

    Args:
        context: Settings, seed, models.
        counts: Where candidates are counted.
        drops: Where candidates that a filter drops are listed, as JSON lines.
    """

    def __init__(self, context: SourceContext, counts: BuildCounts, drops: BinaryIO) -> None:
        self._context, self._counts, self._drops = context, counts, drops
        self._filter, mix = CandidateFilter(context.mix.filter), context.mix
        by_logp = mix.filter.logp is not None
        self._scorer = ResponseScorer(context.policy, context.folder, mix.batch_size) if by_logp else None

    def draw(
        self,
        groups: Sequence[PromptGroup],
        names: Sequence[str],
        wishes: Mapping[str, list[str]],
        *,
        strict: bool,
        present: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Draw]:
        """Draw negatives of some prompts; with a filter on ℓ̄, draw again where one is too easy, while any are left.

        Args:
            groups: Prompts with chosen responses.
            names: The sources that are asked.
            wishes: Names of the sources that the negatives are to come from, by row id.
            strict: A wish goes to its source alone; otherwise any other source stands in.
            present: Texts that a prompt already has, by row id.
        """
        pools, draws = self._pools(groups, names, wishes, strict), list[Draw]()
        for group in groups:
            rng = seeded(self._context.seed, group.id, "order")
            left = {name: rng.sample(pool, len(pool)) for name, pool in pools[group.id].items()}
            refused = {Candidate(text).key for text in (present or {}).get(group.id, ())}
            draws.append(Draw(group, [*wishes[group.id]], left, strict, refused))
        fresh = [(draw, new) for draw in draws if (new := draw.take())]
        while self._scorer is not None and fresh:
            scored = [draw.group.with_responses([c.response() for c in new]) for draw, new in fresh]
            for (draw, new), logps in zip(fresh, self._scorer.logp_means(scored, self._context.progress), strict=True):
                for candidate, logp in zip(new, logps, strict=True):
                    if (reason := self._filter.too_easy(logp)) is not None:
                        draw.refuse(candidate)
                        self._drop(draw.group, candidate, reason)
                        self._counts.by_source[candidate.source].dropped += 1
            fresh = [(draw, new) for draw, _ in fresh if (new := draw.take())]
        return draws

    def _pools(
        self, groups: Sequence[PromptGroup], names: Sequence[str], wishes: Mapping[str, list[str]], strict: bool
    ) -> dict[str, dict[str, list[Candidate]]]:
        """Ask cheap sources for every prompt, costly ones where wished for, or where there is nothing else."""
        context = self._context
        pools: dict[str, dict[str, list[Candidate]]] = {g.id: {name: [] for name in names} for g in groups}
        sources = {name: context.mix.sources[name] for name in names}
        for name in names:
            self._counts.by_source.setdefault(name, SourceCounts())
        for name, source in sorted(sources.items(), key=lambda item: item[1].costly):
            asked = [
                group
                for group in groups
                if not source.costly or name in wishes[group.id] or not (strict or any(pools[group.id].values()))
            ]
            # Cheap sources are asked for as many as a prompt can take, costly ones for what is wished for.
            wanted = {g.id: (wishes[g.id].count(name) if source.costly else 0) or context.mix.most for g in asked}
            proposed = source.propose(asked, wanted, context) if asked else {}
            for group in asked:
                for candidate in proposed.get(group.id, ()):
                    named = replace(candidate, source=name)
                    result = self._filter(group, named)
                    if result.reason is None and context.unfit is not None:
                        result = replace(result, reason=context.unfit(group, named.text))
                    self._counts.by_source[name].add(result)
                    if result.reason is None:
                        pools[group.id][name].append(named)
                    else:
                        self._drop(group, named, result.reason)
        return pools

    def _drop(self, group: PromptGroup, candidate: Candidate, reason: str) -> None:
        row: dict[str, Any] = {"id": group.id, "source": candidate.source, "text": candidate.text, "reason": reason}
        row |= {} if candidate.difficulty is None else {"difficulty": candidate.difficulty}
        self._drops.write((to_json(row) + "\n").encode())
        self._counts.dropped += 1


def make_negatives(context: SourceContext, counts: BuildCounts) -> Iterator[PromptGroup]:
    """Yield every prompt with its chosen response and `per_prompt` rejected ones; prompts that got none are left out.

    The draw among sources depends on the seed and the row's id alone. A prompt that a source has nothing for (no
    rejected response in the data, every hypothesis a gold one, all of them filtered) draws from the others. Where every
    update draws again (`mix.pooled`), a prompt gets up to `mix.most` of every source instead.

    If no model writes or scores, prompts are worked on some thousands at a time, and memory does not grow with them.

    Args:
        context: The prompts, settings, seed and models. Texts, scores and `dropped.jsonl` go to its folder, so that a
            killed run resumes there.
        counts: Is filled.

    Raises:
        DataError: No prompt got a negative.
        ServiceError: An endpoint cannot be used, or its cap is reached; what was answered is kept.
    """
    mix, rows = context.mix, context.rows
    cheap = mix.filter.logp is None and not any(source.costly for source in mix.sources.values())
    size = _CHUNK if cheap else max(1, len(rows))
    with whole_file(context.folder / "dropped.jsonl") as drops:
        builder = NegativeBuilder(context, counts, drops)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            for draw in builder.draw(part, [*mix.sources], _wishes(part, context), strict=mix.pooled):
                if rejected := counts.use(draw.taken.values()):
                    yield draw.group.with_responses((*draw.group.by_role(CHOSEN)[:1], *rejected))
                else:
                    counts.used["none"] += 1
            if context.progress is not None and size < len(rows):
                context.progress(min(start + size, len(rows)), len(rows))
    if counts.used["none"] == len(rows):
        listed = f" ({counts.dropped} candidates were dropped: {context.folder / 'dropped.jsonl'})"
        raise DataError(
            f"none of {len(rows)} prompts got a negative from {', '.join(mix.sources)}{listed * bool(counts.dropped)}"
            "; give the data rejected responses, or set another source in negatives.stage1 and negatives.stage2, for "
            "instance beam: 1 or other: 1"
        )


def _wishes(groups: Sequence[PromptGroup], context: SourceContext) -> dict[str, list[str]]:
    """Return the sources wished for by row id: all of them where updates draw again, else one draw by share."""
    mix = context.mix
    if mix.pooled:
        every = [name for name in mix.sources for _ in range(mix.most)]
        return {g.id: every for g in groups}
    names, shares = list(mix.shares()), list(mix.shares().values())
    rngs = {g.id: seeded(context.seed, g.id, "source") for g in groups}
    return {identity: rng.choices(names, weights=shares, k=mix.per_prompt) for identity, rng in rngs.items()}


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
