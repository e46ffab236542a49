"""Rejected responses for a stage: proposed by several sources, filtered, drawn by share."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.errors import DataError
from cwdpo.files import read_jsonl, whole_file
from cwdpo.negatives.candidates import Candidate, Source, seeded
from cwdpo.negatives.filters import Finding, Judge
from cwdpo.negatives.generating_model import NegativePolicy, Weigher
from cwdpo.negatives.sources import make_sources
from cwdpo.recipe import EditorSection, SourceMix

__all__ = ["Builder", "Negatives", "Plan", "Tally", "Totals", "build_negatives", "make_negatives"]

_AT_ONCE = 4096
"""Prompts that are worked on at once where no model has to write or weigh."""


@dataclass
class Tally:
    """What became of the candidates of one source.

    Attributes:
        proposed: Candidates looked at.
        identical: Of these, those that read like a gold response.
        suspects: Of these, those that may be right (identical ones among them).
        exact: Of these, those known to be right or wrong (on `scenes`).
        right: On `scenes`, those that are right.
        right_suspects: On `scenes`, those that are right and suspects.
        dropped: Candidates that a filter dropped.
        used: Negatives that came from this source.
        length_ratio: Sum over candidates of their words to those of the chosen response.
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

    def add(self, finding: Finding) -> None:
        """Count one candidate."""
        self.proposed += 1
        self.identical += finding.identical
        self.suspects += finding.suspect
        self.exact += finding.right is not None
        self.right += bool(finding.right)
        self.right_suspects += bool(finding.right) and finding.suspect
        self.dropped += finding.reason is not None
        self.length_ratio += finding.length_ratio


@dataclass
class Negatives:
    """Prompts with their negatives, and where these came from.

    Attributes:
        groups: Each with its chosen response and its rejected ones; prompts that got none are left out.
        counts: Negatives by source, and under `none` the prompts that got none.
        tallies: What became of the candidates, by source.
        dropped: A row for every candidate that a filter dropped, with the reason.
    """

    groups: list[PromptGroup]
    counts: dict[str, int]
    tallies: dict[str, Tally]
    dropped: list[dict[str, Any]]


@dataclass
class _Draw:
    """One prompt's draw: what is wished for, what is left, what was taken; strict: a wish goes to its source alone."""

    group: PromptGroup
    wishes: list[str]
    left: dict[str, list[Candidate]]
    strict: bool = False
    taken: dict[str, Candidate] = field(default_factory=dict[str, Candidate])
    refused: set[str] = field(default_factory=set[str])

    def take(self) -> list[Candidate]:
        """Take one candidate per wish, from the wished source while it lasts, else from any other; no text twice."""
        new: list[Candidate] = []
        for wish in self.wishes:
            for candidate in self._in_order(wish):
                if candidate.key not in self.taken and candidate.key not in self.refused:
                    self.taken[candidate.key] = candidate
                    new.append(candidate)
                    break
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


@dataclass
class Plan:
    """What is to be had for the prompts.

    Attributes:
        wishes: By row id, the source that each negative is to come from.
        strict: A wish goes to its source alone; otherwise any other source stands in.
        kept: By row id, texts that the prompt has already.
    """

    wishes: dict[str, list[str]]
    strict: bool
    kept: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


def _first_plan(groups: Sequence[PromptGroup], mix: SourceMix, seed: int) -> Plan:
    """Wish for what a prompt is to keep: of every source where updates draw anew, else one draw by share."""
    if mix.pooled:
        every = [name for name in mix.sources() for _ in range(mix.most)]
        return Plan({g.id: every for g in groups}, strict=True)
    shares = mix.shares()
    names, weights = list(shares), list(shares.values())
    drawn = {g.id: seeded(seed, g.id, "source").choices(names, weights=weights, k=mix.per_prompt) for g in groups}
    return Plan(drawn, strict=False)


class Builder:
    """What `make_negatives` does with some prompts, step by step.

    Args:
        groups: Prompts with chosen responses.
        mix: Settings, filter.
        seed: Fixes the draw.
        plan: What is wished for.
        names: The sources that will be asked.
        tallies: Where candidates are counted; default an own count.
    """

    def __init__(
        self,
        groups: Sequence[PromptGroup],
        mix: SourceMix,
        seed: int,
        plan: Plan,
        names: Sequence[str],
        tallies: dict[str, Tally] | None = None,
    ) -> None:
        self._groups, self._mix, self._seed, self._plan = groups, mix, seed, plan
        self._judge = Judge(mix.filter)
        self.tallies = {} if tallies is None else tallies
        for name in names:
            self.tallies.setdefault(name, Tally())
        self.dropped: list[dict[str, Any]] = []
        self._pools: dict[str, dict[str, list[Candidate]]] = {g.id: {name: [] for name in names} for g in groups}

    def ask(self, sources: Mapping[str, Source]) -> None:
        """Fill the pools: cheap sources for every prompt, costly ones where wished for, or where nothing else is."""
        wishes, strict = self._plan.wishes, self._plan.strict
        for name, source in sorted(sources.items(), key=lambda item: item[1].costly):
            asked = [
                group
                for group in self._groups
                if not source.costly or name in wishes[group.id] or not (strict or any(self._pools[group.id].values()))
            ]
            # A costly source is asked for what is wished from it, a cheap one for spare ones too.
            most = self._mix.most
            wanted = {g.id: (wishes[g.id].count(name) if source.costly else 0) or most for g in asked}
            proposed = source.propose(asked, wanted) if asked else {}
            for group in asked:
                for candidate in proposed.get(group.id, ()):
                    finding = self._judge(group, candidate)
                    self.tallies[name].add(finding)
                    if finding.reason is None:
                        self._pools[group.id][name].append(candidate)
                    else:
                        self._drop(group, candidate, finding.reason)

    def _drop(self, group: PromptGroup, candidate: Candidate, reason: str) -> None:
        row: dict[str, Any] = {"id": group.id, "source": candidate.source, "text": candidate.text, "reason": reason}
        if candidate.difficulty is not None:
            row["difficulty"] = candidate.difficulty
        self.dropped.append(row)

    def draw(self, weigher: Weigher | None, progress: Callable[[int, int], None] | None) -> list[_Draw]:
        """Draw negatives; with a weigher, draw again where one is too easy, while there is something left."""
        draws: list[_Draw] = []
        for group in self._groups:
            rng: random.Random = seeded(self._seed, group.id, "order")
            left = {name: rng.sample(pool, len(pool)) for name, pool in self._pools[group.id].items()}
            draw = _Draw(group, [*self._plan.wishes[group.id]], left, self._plan.strict)
            draw.refused |= {Candidate(text, "").key for text in self._plan.kept.get(group.id, ())}
            draws.append(draw)
        fresh = [(draw, new) for draw in draws if (new := draw.take())]
        while weigher is not None and fresh:
            weighed = weigher.logp_means(
                [draw.group.with_responses([c.response() for c in new]) for draw, new in fresh], progress
            )
            for (draw, new), values in zip(fresh, weighed, strict=True):
                for candidate, value in zip(new, values, strict=True):
                    reason = self._judge.too_easy(value)
                    if reason is not None:
                        draw.refuse(candidate)
                        self._drop(draw.group, candidate, reason)
                        self.tallies[candidate.source].dropped += 1
            fresh = [(draw, new) for draw, _ in fresh if (new := draw.take())]
        return draws


@dataclass
class Totals:
    """What is counted while negatives are made.

    Attributes:
        counts: Negatives by source, and under `none` the prompts that got none.
        tallies: What became of the candidates, by source.
        dropped: Candidates that a filter dropped.
    """

    counts: Counter[str] = field(default_factory=Counter[str])
    tallies: dict[str, Tally] = field(default_factory=dict[str, Tally])
    dropped: int = 0

    def tally_rows(self) -> dict[str, dict[str, Any]]:
        """Return the tallies as plain values."""
        return {name: asdict(tally) for name, tally in self.tallies.items()}


def make_negatives(
    groups: Sequence[PromptGroup],
    mix: SourceMix,
    totals: Totals,
    *,
    seed: int,
    folder: Path,
    policy: NegativePolicy,
    editor: EditorSection | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Iterator[PromptGroup]:
    """Yield every prompt with its chosen response and `mix.per_prompt` rejected ones; those that got none are left out.

    The draw among sources depends on the seed and the row's id alone. A prompt that a source has nothing for (no
    rejected response in the data, every hypothesis a gold one, all of them filtered) draws from the others. Where every
    update draws anew (`mix.pooled`), a prompt gets up to `mix.most` of every source instead.

    Where no model writes or weighs, prompts are worked on some thousands at a time, and memory does not grow with them.

    Args:
        groups: Prompts with chosen (and, for `dataset`, rejected) responses.
        mix: Shares, settings, filter.
        totals: Is filled.
        seed: Fixes the draw.
        folder: Where texts written by models and their scores are kept, so that a killed run goes on from there, and
            `dropped.jsonl`.
        policy: Who writes on-policy negatives, and weighs all of them for the filter on ℓ̄.
        editor: Who writes the source `edit`.
        progress: Called with prompts done so far (generated, edited, scored) and their number.
        note: Told what is worth knowing before it happens, such as what edits will cost.

    Raises:
        DataError: No prompt got a negative.
        ServiceError: The editor's endpoint cannot be used, or its cap is reached; what was answered is kept.
    """
    common: dict[str, Any] = {"seed": seed, "folder": folder, "policy": policy, "progress": progress, "note": note}
    sources = make_sources(groups, mix, editor=editor or EditorSection(), **common)
    weigher = Weigher(policy, folder, mix.batch_size) if mix.filter.logp is not None else None
    cheap = weigher is None and not any(source.costly for source in sources.values())
    size, found = (_AT_ONCE if cheap else max(1, len(groups))), 0
    with whole_file(folder / "dropped.jsonl") as listed:
        for start in range(0, len(groups), size):
            part = groups[start : start + size]
            builder = Builder(part, mix, seed, _first_plan(part, mix, seed), mix.sources(), totals.tallies)
            builder.ask(sources)
            for draw in builder.draw(weigher, progress):
                if not draw.taken:
                    totals.counts["none"] += 1
                    continue
                found += 1
                totals.counts.update(c.source for c in draw.taken.values())
                chosen = draw.group.by_role(CHOSEN)[:1]
                yield draw.group.with_responses((*chosen, *(c.response() for c in draw.taken.values())))
            listed.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in builder.dropped)
            totals.dropped += len(builder.dropped)
            if progress is not None and size < len(groups):
                progress(min(start + size, len(groups)), len(groups))
    for name, tally in totals.tallies.items():
        tally.used = totals.counts[name]
    if not found:
        dropped = f" ({totals.dropped} candidates were dropped: {folder / 'dropped.jsonl'})"
        raise DataError(
            f"none of {len(groups)} prompts got a negative from {', '.join(mix.sources())}"
            f"{dropped if totals.dropped else ''}; give the data rejected responses, "
            "or set another source in negatives.stage1 and negatives.stage2, for instance beam: 1 or other: 1"
        )


def build_negatives(groups: Sequence[PromptGroup], mix: SourceMix, *, folder: Path, **settings: Any) -> Negatives:
    """Return what `make_negatives` yields, in memory, with what was counted and dropped."""
    totals = Totals()
    found = list(make_negatives(groups, mix, totals, folder=folder, **settings))
    counts = {name: count for name, count in totals.counts.items() if count}
    return Negatives(found, counts, totals.tallies, list(read_jsonl(folder / "dropped.jsonl")))
