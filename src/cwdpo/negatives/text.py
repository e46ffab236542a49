"""Texts compared with each other: word by word, without regard to case and punctuation."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = ["edit_distance", "normalise", "rouge_l", "word_diff"]


def normalise(text: str) -> str:
    """Return a text as negatives are compared with gold responses: lower case, words only."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the least number of insertions, deletions and substitutions between two sequences (Levenshtein)."""
    previous = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        current = [i]
        for j, b in enumerate(other, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]


def rouge_l(candidate: Sequence[str], gold: Sequence[str]) -> float:
    """Return ROUGE-L, the F1 of the longest common subsequence of two lists of words; 0 where either is empty."""
    if not candidate or not gold:
        return 0.0
    previous = [0] * (len(gold) + 1)
    for a in candidate:
        current = [0]
        for j, b in enumerate(gold, 1):
            current.append(previous[j - 1] + 1 if a == b else max(previous[j], current[j - 1]))
        previous = current
    return 2 * previous[-1] / (len(candidate) + len(gold))


def word_diff(gold: str, text: str) -> list[tuple[str, str]]:
    """Return `text` against `gold` as runs of words: (`same`, words), (`new`, words), (`gone`, words of `gold`).

    A text that has less than half of its words in common with `gold`, in order, is one run of new words: word by word
    such a pair cannot be read. Punctuation that is gone is passed over.
    """
    one, other = gold.split(), text.split()
    matcher = difflib.SequenceMatcher(None, [normalise(w) or w for w in one], [normalise(w) or w for w in other], False)
    if matcher.ratio() < 0.5:
        return [("new", " ".join(other))]
    found: list[tuple[str, str]] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            found.append(("same", " ".join(other[c:d])))
            continue
        if normalise(" ".join(one[a:b])):
            found.append(("gone", " ".join(one[a:b])))
        if d > c:
            found.append(("new", " ".join(other[c:d])))
    return found
