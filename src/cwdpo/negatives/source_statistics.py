"""What a stage's negatives are worth: figures by source, and some of them to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cwdpo.data.schema import REJECTED, PromptGroup, Response
from cwdpo.methods.cooling import cooling_weight
from cwdpo.negatives.candidates import Candidate, gold_texts, seeded
from cwdpo.negatives.filters import Judge
from cwdpo.negatives.generating_model import Weigher

__all__ = ["Negative", "Sample", "SourceFigures", "Survey", "survey"]

BINS = 10
"""Bins of the histogram of w_c, from 0 to 1."""


@dataclass
class SourceFigures:
    """One source: its candidates, and its negatives that are used.

    Attributes:
        name: The source.
        used: Negatives from it.
        proposed: Candidates looked at.
        dropped: Candidates that a filter dropped.
        identical: Share of the candidates that read like a gold response.
        suspects: Share of the candidates that may be right.
        right: On `scenes`, share of the candidates that are right; None elsewhere.
        precision: On `scenes`, share of the suspects that are right; None where there are none.
        recall: On `scenes`, share of the right ones that are suspects; None where there are none.
        length_ratio: Mean over candidates of their words to those of the chosen response.
        logp_mean: Mean ℓ̄ of its negatives, nats per token; None where nothing was scored.
        cooling_weight: Mean w_c of its negatives.
        histogram: Of w_c, `BINS` bins.
    """

    name: str
    used: int = 0
    proposed: int = 0
    dropped: int = 0
    identical: float = 0.0
    suspects: float = 0.0
    right: float | None = None
    precision: float | None = None
    recall: float | None = None
    length_ratio: float = 0.0
    logp_mean: float | None = None
    cooling_weight: float | None = None
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)


@dataclass(frozen=True)
class Negative:
    """A negative to look at."""

    response: Response
    suspect: bool
    right: bool | None
    logp_mean: float | None = None
    cooling_weight: float | None = None


@dataclass(frozen=True)
class Sample:
    """A prompt to look at."""

    group: PromptGroup
    negatives: list[Negative]
    logp_mean: float | None

    @property
    def others(self) -> list[str]:
        """Gold responses beside the chosen one."""
        return [gold for gold in gold_texts(self.group) if gold != self.group.chosen.text]


@dataclass
class Survey:
    """What is known of a stage's negatives.

    Attributes:
        figures: By source, in the order of the recipe.
        samples: Some prompts, every source among them.
        prompts: Prompts with negatives.
        scored: Of these, those whose responses were scored.
        chosen_logp: Mean ℓ̄ of the chosen responses.
        without: Prompts that got no negative.
        floor: ℓ_floor of w_c.
        tau: Its τ.
    """

    figures: list[SourceFigures]
    samples: list[Sample]
    prompts: int
    scored: int
    chosen_logp: float | None
    without: int
    floor: float
    tau: float


def survey(
    groups: Sequence[PromptGroup],
    tallies: Mapping[str, Mapping[str, Any]],
    *,
    judge: Judge,
    without: int = 0,
    weigher: Weigher | None = None,
    scored: int = 500,
    floor: float = -3.0,
    tau: float = 1.0,
    samples: int = 12,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Look at the negatives of a stage.

    Args:
        groups: Prompts with their negatives.
        tallies: What became of the candidates, by source (`Negatives.tally_rows`).
        judge: Says which negatives may be right.
        without: Prompts that got no negative.
        weigher: Scores responses; None leaves ℓ̄ and w_c out.
        scored: Most prompts that are scored, drawn at random.
        floor: ℓ_floor of w_c.
        tau: Its τ.
        samples: Prompts to look at.
        seed: Fixes which.
        progress: Called with prompts scored and their number.
    """
    order = list(range(len(groups)))
    seeded(seed, "survey", "order").shuffle(order)
    figures = {name: _figures(name, tally) for name, tally in tallies.items()}
    mixed = [groups[i] for i in order]
    shown = _varied(mixed, list(figures), samples)
    part = sorted(order[:scored]) if weigher is not None else []
    ids = {groups[i].id for i in part}
    part_groups = [groups[i] for i in part]
    if weigher is not None and part:
        part_groups += [g for g in shown if g.id not in ids]
    values = weigher.logp_means(part_groups, progress) if weigher is not None else []
    logps = {group.id: row for group, row in zip(part_groups, values, strict=True)}
    weights = {key: cooling_weight(torch.tensor(row), floor=floor, tau=tau).tolist() for key, row in logps.items()}
    _add_scores(figures, [groups[i] for i in part], logps, weights)
    chosen = [logps[groups[i].id][0] for i in part]
    return Survey(
        figures=list(figures.values()),
        samples=[_sample(group, judge, logps.get(group.id), weights.get(group.id)) for group in shown],
        prompts=len(groups),
        scored=len(part),
        chosen_logp=sum(chosen) / len(chosen) if chosen else None,
        without=without,
        floor=floor,
        tau=tau,
    )


def _figures(name: str, tally: Mapping[str, Any]) -> SourceFigures:
    many = max(1, tally["proposed"])
    found = SourceFigures(name, tally["used"], tally["proposed"], tally["dropped"])
    found.identical, found.suspects = tally["identical"] / many, tally["suspects"] / many
    found.length_ratio = tally["length_ratio"] / many
    if tally["exact"]:
        found.right = tally["right"] / many
        found.precision = tally["right_suspects"] / tally["suspects"] if tally["suspects"] else None
        found.recall = tally["right_suspects"] / tally["right"] if tally["right"] else None
    return found


def _add_scores(
    figures: Mapping[str, SourceFigures],
    groups: Sequence[PromptGroup],
    logps: Mapping[str, Sequence[float]],
    weights: Mapping[str, Sequence[float]],
) -> None:
    rows: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        for response, logp, weight in zip(group.responses, logps[group.id], weights[group.id], strict=True):
            if response.role == REJECTED:
                rows.setdefault(response.source, []).append((logp, weight))
    for name, values in rows.items():
        if name not in figures:
            continue  # a data set may name sources of its own
        found = figures[name]
        found.logp_mean = sum(logp for logp, _ in values) / len(values)
        found.cooling_weight = sum(weight for _, weight in values) / len(values)
        for _, weight in values:
            found.histogram[min(BINS - 1, int(weight * BINS))] += 1


def _varied(groups: Sequence[PromptGroup], sources: Sequence[str], count: int) -> list[PromptGroup]:
    """Take the first prompts, every source in turn, so that a rare one is seen too."""
    waiting = {name: [g for g in groups if any(r.source == name for r in g.by_role(REJECTED))] for name in sources}
    found: dict[str, PromptGroup] = {}
    while len(found) < count and any(waiting.values()):
        for rows in waiting.values():
            while rows and rows[0].id in found:
                rows.pop(0)
            if rows and len(found) < count:
                group = rows.pop(0)
                found[group.id] = group
    return list(found.values())


def _sample(group: PromptGroup, judge: Judge, logps: Sequence[float] | None, weights: Sequence[float] | None) -> Sample:
    negatives: list[Negative] = []
    for i, response in enumerate(group.responses):
        if response.role != REJECTED:
            continue
        finding = judge(group, Candidate(response.text, response.source, response.difficulty))
        scores = (logps[i], weights[i]) if logps is not None and weights is not None else (None, None)
        negatives.append(Negative(response, finding.suspect, finding.right, *scores))
    return Sample(group, negatives, None if logps is None else logps[0])
