"""Which candidates are no negatives, or not worth training on: identical, right after all, too long, too easy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.lexicon import default_lexicon
from cwdpo.negatives.source import Candidate, gold_texts
from cwdpo.negatives.text import normalise, rouge_l
from cwdpo.recipe.negatives_sections import FilterSection
from cwdpo.scenes.grammar import count_errors, parse
from cwdpo.scenes.world import Scene

__all__ = ["IDENTICAL", "CandidateFilter", "FilterResult", "support", "true_of_scene"]

IDENTICAL = "identical to a gold response"
"""Why a candidate that reads like a gold response is dropped. Rejected responses of the data are taken as they are."""


@dataclass(frozen=True)
class FilterResult:
    """What a filter says about a candidate.

    Attributes:
        reason: Why it is dropped, or None.
        identical: It reads like a gold response.
        similarity: 0 to 1, by the recipe's measure; None if the measure does not apply to its source.
        suspect: It may be right: `similarity` is at the threshold or above, or it is identical.
        length_ratio: Its length in words relative to the chosen response.
        right: On `scenes`, whether what it says is true of the picture; None elsewhere.
    """

    reason: str | None
    identical: bool
    similarity: float | None
    suspect: bool
    length_ratio: float
    right: bool | None


class CandidateFilter:
    """A recipe's filter: `rules` are its settings."""

    def __init__(self, rules: FilterSection) -> None:
        self._rules, self._lexicon = rules, default_lexicon()
        self._gold_concepts: tuple[str, set[str]] = ("", set())

    def __call__(self, group: PromptGroup, candidate: Candidate) -> FilterResult:
        """Look at a candidate for a prompt."""
        rules, golds = self._rules, gold_texts(group)
        identical = candidate.key in {normalise(gold) for gold in golds}
        right = true_of_scene(candidate.text, group)
        similarity = 1.0 if identical else self._similarity(group, golds, candidate, right)
        threshold = 1.0 if rules.similarity is None else rules.similarity
        suspect = similarity is not None and similarity >= threshold
        length = len(normalise(candidate.text).split())
        ratio = length / max(1, len(normalise(group.chosen.text).split()))
        reason = candidate.problem
        if reason is not None:
            pass
        elif identical and candidate.source != "dataset":
            reason = IDENTICAL
        elif not length and candidate.source != "dataset":
            reason = "no words"
        elif rules.similarity is not None and suspect:
            reason = f"similarity to gold {similarity:.2f} (negatives filter: similarity {rules.similarity:g})"
        elif rules.shortest is not None and ratio < rules.shortest:
            reason = f"length ratio {ratio:.2f} (negatives filter: shortest {rules.shortest:g})"
        elif rules.longest is not None and ratio > rules.longest:
            reason = f"length ratio {ratio:.2f} (negatives filter: longest {rules.longest:g})"
        return FilterResult(reason, identical, similarity, suspect, ratio, right)

    def too_easy(self, logp_mean: float) -> str | None:
        """Return why a candidate of this ℓ̄ is dropped, or None."""
        lowest = self._rules.logp
        if lowest is None or logp_mean >= lowest:
            return None
        return f"mean log-probability {logp_mean:.2f} (negatives filter: logp {lowest:g})"

    def _similarity(
        self, group: PromptGroup, golds: Sequence[str], candidate: Candidate, right: bool | None
    ) -> float | None:
        measure = self._rules.measure
        if measure == "exact":
            return None if right is None else float(right)
        if measure == "rouge_l":
            return max(rouge_l(normalise(candidate.text).split(), normalise(gold).split()) for gold in golds)
        if candidate.source == "shuffle":
            return None  # the same words in another order: support looks at words alone
        if self._gold_concepts[0] != group.id:
            self._gold_concepts = (group.id, set[str]().union(*(self._lexicon.concepts(gold) for gold in golds)))
        return support(self._lexicon.concepts(candidate.text), self._gold_concepts[1])


def support(concepts: set[str], gold: set[str]) -> float:
    """Return the fraction of a text's concepts that the gold responses mention too; 1 if it adds none."""
    return len(concepts & gold) / len(concepts) if concepts else 1.0


def true_of_scene(text: str, group: PromptGroup) -> bool | None:
    """Return whether all that a text says is true of the row's scene; None if the row has no scene."""
    if "scene" not in group.facts:
        return None
    meaning = parse(text)
    return meaning is not None and count_errors(meaning, Scene.from_json(group.facts["scene"])) == 0
