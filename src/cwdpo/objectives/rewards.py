"""What sampled responses are rewarded for: CIDEr-D against the references, or exact correctness on `scenes`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.data.words import words
from cwdpo.errors import DataError
from cwdpo.scenes.grammar import is_correct
from cwdpo.scenes.world import Scene
from cwdpo.scoring.batch import EncodedGroup

__all__ = ["CiderReward", "Reward", "exact_reward", "reward_for"]

Reward = Callable[[EncodedGroup, Sequence[str]], Sequence[float]]
"""A prompt and responses to it, to a reward of each."""

_LONGEST = 4
"""Longest n-gram of CIDEr."""

_SIGMA = 6.0
"""Width of CIDEr-D's penalty on length."""

_Grams = Counter[tuple[str, ...]]


def exact_reward(group: EncodedGroup, texts: Sequence[str]) -> list[float]:
    """Return 1 for each response that is wholly right of the row's scene, else 0.

    Raises:
        DataError: The row has no scene.
    """
    if "scene" not in group.facts:
        raise DataError(f"{group.origin}: has no scene, which stage2.reward: exact reads; use stage2.reward: cider")
    scene = Scene.from_json(dict(group.facts["scene"]))
    return [float(is_correct(text, scene)) for text in texts]


class CiderReward:
    """CIDEr-D of a response against its row's references; 1 is what tables call 100.

    In how many rows an n-gram occurs is counted once over a whole corpus: within one row alone every n-gram occurs in
    all rows, and every CIDEr is 0.

    Args:
        corpus: References of every row of the corpus.

    Raises:
        DataError: The corpus has fewer than two rows with references.
    """

    def __init__(self, corpus: Iterable[Sequence[str]]) -> None:
        rows = 0
        self._found: _Grams = Counter()
        for references in corpus:
            if references:
                rows += 1
                self._found.update({gram for text in references for gram in _grams(text)})
        if rows < 2:
            raise DataError(
                f"{rows} rows with references: a reward by CIDEr needs 2 or more, for words that all rows have say "
                "nothing; give more rows, or another reward"
            )
        self._log_rows = math.log(rows)

    def __call__(self, group: EncodedGroup, texts: Sequence[str]) -> list[float]:
        """Return the CIDEr-D of each response.

        Raises:
            DataError: The row has no references.
        """
        if not group.references:
            raise DataError(
                f"{group.origin}: has no references and no chosen response, which a reward by CIDEr compares with; "
                "leave the row out, or set another reward"
            )
        gold = [self._weighed(text) for text in group.references]
        return [self._score(self._weighed(text), gold) for text in texts]

    def _weighed(self, text: str) -> tuple[list[dict[tuple[str, ...], float]], int]:
        """Return tf-idf by length of n-gram, and how many pairs of words there are (CIDEr-D's length)."""
        by_length: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
        for gram, count in _grams(text).items():
            rarity = self._log_rows - math.log(max(1, self._found[gram]))
            by_length[len(gram) - 1][gram] = count * rarity
        return by_length, max(0, len(words(text).split()) - 1)

    def _score(
        self,
        candidate: tuple[list[dict[tuple[str, ...], float]], int],
        gold: Sequence[tuple[list[dict[tuple[str, ...], float]], int]],
    ) -> float:
        total = 0.0
        own, length = candidate
        for other, other_length in gold:
            penalty = math.exp(-((length - other_length) ** 2) / (2 * _SIGMA**2))
            total += penalty * sum(_similarity(one, two) for one, two in zip(own, other, strict=True)) / _LONGEST
        return 10 * total / len(gold)


def _grams(text: str) -> _Grams:
    said = words(text).split()
    return Counter(tuple(said[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(said) - n + 1))


def _similarity(one: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    """Return the cosine of two vectors, the first cut to the second where it is above it."""
    norms = math.hypot(*one.values()) * math.hypot(*other.values())
    shared = sum(min(value, other[gram]) * other[gram] for gram, value in one.items() if gram in other)
    return shared / norms if norms else 0.0


def reward_for(kind: str, groups: Sequence[PromptGroup]) -> Reward:
    """Return the reward that a recipe asks for.

    Args:
        kind: `exact`, `cider`, or `auto`: `exact` where every row has a scene, else `cider`.
        groups: All training prompts: the corpus of CIDEr.
    """
    if kind == "exact" or (kind == "auto" and all("scene" in group.facts for group in groups)):
        return exact_reward
    return CiderReward(g.references or tuple(r.text for r in g.by_role(CHOSEN)) for g in groups)
