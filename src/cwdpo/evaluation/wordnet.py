"""Which words mean the same: WordNet 3.0, as METEOR's jar (a part of pycocoevalcap) brings it."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path

__all__ = ["same_meaning", "synsets"]


@functools.cache
def _table() -> dict[str, frozenset[str]]:
    from pycocoevalcap.meteor import meteor

    with zipfile.ZipFile(Path(meteor.__file__).parent / meteor.METEOR_JAR) as jar:
        lines = jar.read("synonym/english.synsets").decode().splitlines()
    return {word: frozenset(ids.split()) for word, ids in zip(lines[::2], lines[1::2], strict=True)}


def synsets(word: str) -> frozenset[str]:
    """Return the WordNet synsets of a word or phrase in lower case; none where it is not known."""
    return _table().get(word.replace(" ", "_"), frozenset())


@functools.lru_cache(100_000)
def same_meaning(one: str, other: str) -> bool:
    """Whether two words are equal or share a synset."""
    return one == other or not synsets(one).isdisjoint(synsets(other))
