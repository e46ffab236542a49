"""Which candidates are no negatives, or not worth training on: identical, right after all, too long, too easy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.candidates import Candidate, gold_texts
from cwdpo.negatives.lexicon import Lexicon, default_lexicon
from cwdpo.negatives.text import normalise, rouge_l, words
from cwdpo.recipe import FilterSection
from cwdpo.scenes.grammar import count_errors, parse
from cwdpo.scenes.world import Scene

__all__ = ["IDENTICAL", "Finding", "Judge", "support", "true_of_scene"]

IDENTICAL = "identical to a gold response"
"""Why a candidate is dropped that reads like a gold response. Rejected responses of the data are taken as they are."""


@dataclass(frozen=True)
class Finding:
    """What was found out about a candidate.

    Attributes:
        reason: Why it is dropped, or None.
        identical: It reads like a gold response.
        similarity: 0 to 1, by the measure of the recipe; None where the measure says nothing of this source.
        suspect: It may be right: `similarity` is at the threshold or above, or it is identical.
        length_ratio: Its words to those of the chosen response.
        right: On `scenes`, whether what it says is true of the picture; None elsewhere.
    """

    reason: str | None
    identical: bool
    similarity: float | None
    suspect: bool
    length_ratio: float
    right: bool | None


class Judge:
    """Looks at candidates as a recipe's filter says.

    Args:
        rules: The filter.
        lexicon: The words; default those that ship with cwdpo.
    """

    def __init__(self, rules: FilterSection, lexicon: Lexicon | None = None) -> None:
        self._rules, self._lexicon = rules, lexicon or default_lexicon()
        self._said: tuple[str, set[str]] = ("", set())

    def __call__(self, group: PromptGroup, candidate: Candidate) -> Finding:
        """Return what is found out about a candidate for a prompt, and why it is to be dropped."""
        rules, golds = self._rules, gold_texts(group)
        identical = candidate.key in {normalise(gold) for gold in golds}
        right = true_of_scene(candidate.text, group)
        similarity = 1.0 if identical else self._similarity(group, golds, candidate, right)
        threshold = 1.0 if rules.similarity is None else rules.similarity
        suspect = similarity is not None and similarity >= threshold
        ratio = len(words(candidate.text)) / max(1, len(words(group.chosen.text)))
        reason = candidate.problem
        if reason is not None:
            pass
        elif identical and candidate.source != "dataset":
            reason = IDENTICAL
        elif not words(candidate.text) and candidate.source != "dataset":
            reason = "no words"
        elif rules.similarity is not None and suspect:
            reason = f"similarity to gold {similarity:.2f} (negatives filter: similarity {rules.similarity:g})"
        elif rules.shortest is not None and ratio < rules.shortest:
            reason = f"length ratio {ratio:.2f} (negatives filter: shortest {rules.shortest:g})"
        elif rules.longest is not None and ratio > rules.longest:
            reason = f"length ratio {ratio:.2f} (negatives filter: longest {rules.longest:g})"
        return Finding(reason, identical, similarity, suspect, ratio, right)

    def too_easy(self, logp_mean: float) -> str | None:
        """Return why a candidate of this ℓ̄ is dropped, or None."""
        least = self._rules.logp
        if least is None or logp_mean >= least:
            return None
        return f"mean log-probability {logp_mean:.2f} (negatives filter: logp {least:g})"

    def _similarity(
        self, group: PromptGroup, golds: Sequence[str], candidate: Candidate, right: bool | None
    ) -> float | None:
        measure = self._rules.measure
        if measure == "exact":
            return None if right is None else float(right)
        if measure == "rouge_l":
            return max(rouge_l(words(candidate.text), words(gold)) for gold in golds)
        if candidate.source == "shuffle":
            return None  # the same words in another order: support looks at words alone
        if self._said[0] != group.id:
            self._said = (group.id, set[str]().union(*(self._lexicon.concepts(gold) for gold in golds)))
        return support(self._lexicon.concepts(candidate.text), self._said[1])


def support(concepts: set[str], said: set[str]) -> float:
    """Return the share of what a text speaks of that the gold responses speak of too; 1 where it adds nothing."""
    return len(concepts & said) / len(concepts) if concepts else 1.0


def true_of_scene(text: str, group: PromptGroup) -> bool | None:
    """Return whether all that a text says is true of the row's scene; None where the row has no scene."""
    if "scene" not in group.facts:
        return None
    meaning = parse(text)
    return meaning is not None and count_errors(meaning, Scene.from_json(group.facts["scene"])) == 0
