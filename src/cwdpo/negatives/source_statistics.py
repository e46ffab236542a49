"""What a stage's negatives are worth: statistics by source, and some of them to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cwdpo.data.schema import REJECTED, PromptGroup, Response
from cwdpo.methods.cooling import cooling_weight
from cwdpo.negatives.filters import CandidateFilter
from cwdpo.negatives.generating_model import ResponseScorer
from cwdpo.negatives.source import Candidate, gold_texts, seeded

__all__ = ["NegativeStatistics", "ShownNegative", "ShownPrompt", "SourceStatistics", "collect_statistics"]

BINS = 10
"""Bins of the histogram of w_c, from 0 to 1."""


@dataclass
class SourceStatistics:
    """One source: its candidates, and its negatives in use.

    Attributes:
        name: The source.
        used: Negatives from it.
        proposed: Candidates looked at.
        dropped: Candidates that a filter dropped.
        identical: Fraction of the candidates that read like a gold response.
        suspects: Fraction of the candidates that may be right.
        right: On `scenes`, fraction of the candidates that are right; None elsewhere.
        precision: On `scenes`, fraction of the suspects that are right; None if there are none.
        recall: On `scenes`, fraction of the right ones that are suspects; None if there are none.
        length_ratio: Mean over candidates of their length in words relative to the chosen response.
        logp_mean: Mean ℓ̄ of its negatives, nats per token; None if nothing was scored.
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
class ShownNegative:
    """A negative to look at."""

    response: Response
    suspect: bool
    right: bool | None
    logp_mean: float | None = None
    cooling_weight: float | None = None


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt to look at."""

    group: PromptGroup
    negatives: list[ShownNegative]
    logp_mean: float | None

    @property
    def others(self) -> list[str]:
        """Gold responses beside the chosen one."""
        return [gold for gold in gold_texts(self.group) if gold != self.group.chosen.text]


@dataclass
class NegativeStatistics:
    """What is known of a stage's negatives.

    Attributes:
        figures: By source, in the order of the recipe.
        samples: Some prompts, every source among them.
        prompts: Prompts with negatives.
        scored: Those whose responses were scored.
        chosen_logp: Mean ℓ̄ of the chosen responses.
        without: Prompts that got no negative.
        floor: ℓ_floor of w_c.
        tau: Its τ.
    """

    figures: list[SourceStatistics]
    samples: list[ShownPrompt]
    prompts: int
    scored: int
    chosen_logp: float | None
    without: int
    floor: float
    tau: float


def collect_statistics(
    groups: Sequence[PromptGroup],
    counts: Mapping[str, Mapping[str, Any]],
    *,
    judge: CandidateFilter,
    without: int = 0,
    scorer: ResponseScorer | None = None,
    scored: int = 500,
    floor: float = -3.0,
    tau: float = 1.0,
    samples: int = 12,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NegativeStatistics:
    """Look at the negatives of a stage.

    Args:
        groups: Prompts with their negatives.
        counts: What became of the candidates, by source (`BuildCounts.to_json`).
        judge: Says which negatives may be right.
        without: Prompts that got no negative.
        scorer: Scores responses; None leaves ℓ̄ and w_c out.
        scored: Most prompts that are scored, drawn at random.
        floor: ℓ_floor of w_c.
        tau: Its τ.
        samples: Prompts to look at.
        seed: Fixes which.
        progress: Called with prompts scored and their number.
    """
    order = list(range(len(groups)))
    seeded(seed, "survey", "order").shuffle(order)
    figures = {name: _of_source(name, source) for name, source in counts.items()}
    shown = _every_source([groups[i] for i in order], list(figures), samples)
    part = [groups[i] for i in sorted(order[:scored])] if scorer is not None else []
    logps: dict[str, list[float]] = {}
    if scorer is not None:
        asked = {group.id: group for group in (*part, *(shown if part else ()))}
        logps = dict(zip(asked, scorer.logp_means(list(asked.values()), progress), strict=True))
    weights = {key: cooling_weight(torch.tensor(row), floor=floor, tau=tau).tolist() for key, row in logps.items()}
    _add_scores(figures, part, logps, weights)
    chosen = [logps[group.id][0] for group in part]
    return NegativeStatistics(
        figures=list(figures.values()),
        samples=[_shown(group, judge, logps.get(group.id), weights.get(group.id)) for group in shown],
        prompts=len(groups),
        scored=len(part),
        chosen_logp=sum(chosen) / len(chosen) if chosen else None,
        without=without,
        floor=floor,
        tau=tau,
    )


def _of_source(name: str, counts: Mapping[str, Any]) -> SourceStatistics:
    proposed = max(1, counts["proposed"])
    statistics = SourceStatistics(name, counts["used"], counts["proposed"], counts["dropped"])
    statistics.identical, statistics.suspects = counts["identical"] / proposed, counts["suspects"] / proposed
    statistics.length_ratio = counts["length_ratio"] / proposed
    if counts["exact"]:
        right = counts["right_suspects"]
        statistics.right = counts["right"] / proposed
        statistics.precision = right / counts["suspects"] if counts["suspects"] else None
        statistics.recall = right / counts["right"] if counts["right"] else None
    return statistics


def _add_scores(
    figures: Mapping[str, SourceStatistics],
    groups: Sequence[PromptGroup],
    logps: Mapping[str, Sequence[float]],
    weights: Mapping[str, Sequence[float]],
) -> None:
    scores: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        for response, logp, weight in zip(group.responses, logps[group.id], weights[group.id], strict=True):
            if response.role == REJECTED and response.source in figures:  # a data set may name sources of its own
                scores.setdefault(response.source, []).append((logp, weight))
    for name, values in scores.items():
        figures[name].logp_mean = sum(logp for logp, _ in values) / len(values)
        figures[name].cooling_weight = sum(weight for _, weight in values) / len(values)
        for _, weight in values:
            figures[name].histogram[min(BINS - 1, int(weight * BINS))] += 1


def _every_source(groups: Sequence[PromptGroup], sources: Sequence[str], count: int) -> list[PromptGroup]:
    """Take the first prompts, every source in turn, so that a rare one is seen too."""
    waiting = {name: [g for g in groups if any(r.source == name for r in g.by_role(REJECTED))] for name in sources}
    shown: dict[str, PromptGroup] = {}
    while len(shown) < count and any(waiting.values()):
        for rows in waiting.values():
            while rows and rows[0].id in shown:
                rows.pop(0)
            if rows and len(shown) < count:
                group = rows.pop(0)
                shown[group.id] = group
    return list(shown.values())


def _shown(
    group: PromptGroup, judge: CandidateFilter, logps: Sequence[float] | None, weights: Sequence[float] | None
) -> ShownPrompt:
    negatives: list[ShownNegative] = []
    for i, response in enumerate(group.responses):
        if response.role == REJECTED:
            result = judge(group, Candidate(response.text, response.difficulty, source=response.source))
            scores = (logps[i], weights[i]) if logps is not None and weights is not None else (None, None)
            negatives.append(ShownNegative(response, result.suspect, result.right, *scores))
    return ShownPrompt(group, negatives, None if logps is None else logps[0])
