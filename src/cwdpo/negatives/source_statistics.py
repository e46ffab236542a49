"""What a stage's negatives are worth: statistics by source, and some of them to look at."""

from __future__ import annotations

import itertools
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
        identical: Fraction of the candidates that read like a gold response; None where there are none.
        suspects: Fraction of the candidates that may be right; None where there are none.
        right: On `scenes`, fraction of the candidates that are right; None elsewhere.
        precision: On `scenes`, fraction of the suspects that are right; None if there are none.
        recall: On `scenes`, fraction of the right ones that are suspects; None if there are none.
        length_ratio: Mean over candidates of their length in words relative to the chosen response; None where there
            are none.
        logp_mean: Mean ℓ̄ of its negatives, nats per token; None if nothing was scored.
        cooling_weight: Mean w_c of its negatives.
        histogram: Of w_c, `BINS` bins.
    """

    name: str
    used: int = 0
    proposed: int = 0
    dropped: int = 0
    identical: float | None = None
    suspects: float | None = None
    right: float | None = None
    precision: float | None = None
    recall: float | None = None
    length_ratio: float | None = None
    logp_mean: float | None = None
    cooling_weight: float | None = None
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)

    @classmethod
    def of(cls, name: str, tally: Mapping[str, float | None]) -> SourceStatistics:
        """Return what the counts of a source come to (`BuildCounts.to_json`, `tallies.json`)."""

        def fraction(part: str, whole: str) -> float | None:
            return (tally.get(part) or 0) / total if (total := tally.get(whole)) else None

        used, proposed, dropped = (int(tally.get(key) or 0) for key in ("used", "proposed", "dropped"))
        source = cls(name, used, proposed, dropped, fraction("identical", "proposed"), fraction("suspects", "proposed"))
        source.length_ratio = fraction("length_ratio", "proposed")
        if tally.get("exact"):
            source.right = fraction("right", "exact")
            source.precision = fraction("right_suspects", "suspects")
            source.recall = fraction("right_suspects", "right")
        return source

    def add_scores(self, scores: Sequence[tuple[float, float]]) -> None:
        """Take in ℓ̄ and w_c of each of its negatives."""
        if scores:
            self.logp_mean = sum(logp for logp, _ in scores) / len(scores)
            self.cooling_weight = sum(weight for _, weight in scores) / len(scores)
        for _, weight in scores:
            self.histogram[min(BINS - 1, int(weight * BINS))] += 1


@dataclass(frozen=True)
class ShownNegative:
    """A negative to look at."""

    response: Response
    suspect: bool
    right: bool | None
    logp_mean: float | None
    cooling_weight: float | None


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
    figures = {name: SourceStatistics.of(name, source) for name, source in counts.items()}
    shown = _every_source([groups[i] for i in order], list(figures), samples)
    part = [groups[i] for i in sorted(order[:scored])] if scorer is not None else []
    logps: dict[str, list[float]] = {}
    if scorer is not None:
        asked = {group.id: group for group in (*part, *(shown if part else ()))}
        logps = dict(zip(asked, scorer.logp_means(list(asked.values()), progress), strict=True))
    weights = {key: cooling_weight(torch.tensor(row), floor=floor, tau=tau).tolist() for key, row in logps.items()}
    for name, source in figures.items():
        scores = [
            (logp, weight)
            for group in part
            for response, logp, weight in zip(group.responses, logps[group.id], weights[group.id], strict=True)
            if response.role == REJECTED and response.source == name
        ]
        source.add_scores(scores)
    chosen = [logps[group.id][0] for group in part]

    def show(group: PromptGroup) -> ShownPrompt:
        unknown: list[None] = [None] * len(group.responses)
        row, cooled = logps.get(group.id, unknown), weights.get(group.id, unknown)
        negatives: list[ShownNegative] = []
        for response, logp, weight in zip(group.responses, row, cooled, strict=True):
            if response.role == REJECTED:
                result = judge(group, Candidate(response.text, response.difficulty, source=response.source))
                negatives.append(ShownNegative(response, result.suspect, result.right, logp, weight))
        return ShownPrompt(group, negatives, row[0])

    return NegativeStatistics(
        figures=list(figures.values()),
        samples=[show(group) for group in shown],
        prompts=len(groups),
        scored=len(part),
        chosen_logp=sum(chosen) / len(chosen) if chosen else None,
        without=without,
        floor=floor,
        tau=tau,
    )


def _every_source(groups: Sequence[PromptGroup], sources: Sequence[str], count: int) -> list[PromptGroup]:
    """Take the first prompts, every source in turn, so that a rare one is seen too."""
    by_source = ([g for g in groups if any(r.source == name for r in g.by_role(REJECTED))] for name in sources)
    turns = itertools.zip_longest(*by_source)
    shown = {group.id: group for turn in turns for group in turn if group is not None}
    return list(shown.values())[:count]
