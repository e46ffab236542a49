"""Captions: a meaning put into words, words read back as a meaning, and whether they are right about a scene."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cwdpo.scenes.world import COLOURS, RELATIONS, SIZES, Scene, Shape

__all__ = [
    "NOUNS",
    "PHRASES",
    "PROMPT",
    "Caption",
    "Meaning",
    "Mention",
    "caption_words",
    "count_errors",
    "is_correct",
    "paraphrases",
    "parse",
    "sample_caption",
]

PROMPT = "describe the picture ."
"""What the user asks of every picture."""

NOUNS: Mapping[str, tuple[str, str]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
}
"""Two words for each kind of shape."""

PHRASES: Mapping[str, tuple[str, str]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""Two phrases for each relation."""

_KIND_OF = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns}
_RELATION_OF = {phrase: relation for relation, phrases in PHRASES.items() for phrase in phrases}


@dataclass(frozen=True)
class Mention:
    """What a caption says of one shape; a size of None is left unsaid."""

    colour: str
    kind: str
    size: str | None = None

    def count_errors(self, shape: Shape) -> int:
        """Return how many of the attributes said are wrong of `shape`."""
        wrong_size = self.size is not None and self.size != shape.size
        return (self.colour != shape.colour) + (self.kind != shape.kind) + wrong_size


@dataclass(frozen=True)
class Meaning:
    """What a caption says: the first mention stands in `relations[i]` to mention `i + 1`."""

    mentions: tuple[Mention, ...]
    relations: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.mentions) == len(self.relations) + 1 >= 2

    def attributes(self) -> int:
        """Return how many attributes are said: colours, kinds, the sizes that are said, relations."""
        return 2 * len(self.mentions) + sum(m.size is not None for m in self.mentions) + len(self.relations)


@dataclass(frozen=True)
class Caption:
    """A meaning and the choice of words for it.

    Attributes:
        meaning: What is said.
        nouns: For each mention, which of the two words of `NOUNS`.
        phrases: For each relation, which of the two phrases of `PHRASES`.
    """

    meaning: Meaning
    nouns: tuple[int, ...]
    phrases: tuple[int, ...]

    @property
    def text(self) -> str:
        """The caption: lower-case words with one space between them."""
        first, *others = (_noun_phrase(m, n) for m, n in zip(self.meaning.mentions, self.nouns, strict=True))
        related = (
            f"{PHRASES[relation][phrase]} {other}"
            for relation, phrase, other in zip(self.meaning.relations, self.phrases, others, strict=True)
        )
        return f"{first} {' and '.join(related)}"


def _noun_phrase(mention: Mention, noun: int) -> str:
    said = [w for w in (mention.size, mention.colour, NOUNS[mention.kind][noun]) if w is not None]
    return f"{'an' if said[0][0] in 'aeiou' else 'a'} {' '.join(said)}"


def _either(words: tuple[str, ...] | list[str]) -> str:
    return "|".join(words)


_MENTION = rf"an? (?:({_either(SIZES)}) )?({_either(COLOURS)}) ({_either(list(_KIND_OF))})"
_RELATION = rf"({_either(list(_RELATION_OF))})"
# The longest caption of the world relates one shape to two others.
_CAPTION = re.compile(rf"{_MENTION} {_RELATION} {_MENTION}(?: and {_RELATION} {_MENTION})?", re.ASCII)


def parse(text: str) -> Meaning | None:
    """Return what `text` says, or None where it is no caption of this grammar.

    `a` and `an` are read alike and any white space counts as one space; all else must be as `Caption.text` writes it.
    """
    match = _CAPTION.fullmatch(" ".join(text.split()))
    if match is None:
        return None
    size, colour, noun, *rest = match.groups()
    mentions = [Mention(colour, _KIND_OF[noun], size)]
    relations: list[str] = []
    for start in range(0, len(rest), 4):
        phrase, size, colour, noun = rest[start : start + 4]
        if phrase is not None:
            relations.append(_RELATION_OF[phrase])
            mentions.append(Mention(colour, _KIND_OF[noun], size))
    return Meaning(tuple(mentions), tuple(relations))


def count_errors(meaning: Meaning, scene: Scene) -> int:
    """Return how many attributes of `meaning` are wrong of `scene` in the most favourable reading.

    A reading takes each mention for another shape of the scene; a mention or relation that finds no shape left is
    wrong in everything it says. 0 means that all that is said is true.
    """
    if len(meaning.mentions) > len(scene.shapes):
        return meaning.attributes()
    return min(
        _errors_of_reading(meaning, shapes) for shapes in itertools.permutations(scene.shapes, len(meaning.mentions))
    )


def _errors_of_reading(meaning: Meaning, shapes: tuple[Shape, ...]) -> int:
    of_shapes = sum(m.count_errors(s) for m, s in zip(meaning.mentions, shapes, strict=True))
    of_relations = sum(not shapes[0].stands(r, s) for r, s in zip(meaning.relations, shapes[1:], strict=True))
    return of_shapes + of_relations


def is_correct(text: str, scene: Scene) -> bool:
    """Tell whether `text` is wholly right: a caption of the grammar, true, and about every shape of the scene."""
    meaning = parse(text)
    return meaning is not None and len(meaning.mentions) == len(scene.shapes) and count_errors(meaning, scene) == 0


def sample_caption(scene: Scene, rng: random.Random) -> Caption:
    """Draw one right caption of `scene`: order, sizes said or not, true relations and synonyms by chance."""
    first, *others = rng.sample(scene.shapes, len(scene.shapes))
    mentions = tuple(Mention(s.colour, s.kind, s.size if rng.random() < 0.5 else None) for s in (first, *others))
    relations = tuple(rng.choice([r for r in RELATIONS if first.stands(r, other)]) for other in others)
    return Caption(
        Meaning(mentions, relations),
        nouns=tuple(rng.randrange(2) for _ in mentions),
        phrases=tuple(rng.randrange(2) for _ in relations),
    )


def paraphrases(scene: Scene, rng: random.Random, count: int) -> list[Caption]:
    """Return `count` right captions of `scene` with different words, in the order drawn."""
    found: dict[str, Caption] = {}
    while len(found) < count:
        caption = sample_caption(scene, rng)
        found.setdefault(caption.text, caption)
    return list(found.values())


def caption_words() -> list[str]:
    """Return every word that captions and `PROMPT` are made of, sorted."""
    spoken = ["a", "an", "and", *COLOURS, *SIZES, *_KIND_OF, *_RELATION_OF, PROMPT]
    return sorted({word for phrase in spoken for word in phrase.split()})
