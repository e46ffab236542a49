"""Wrong captions made without a model: some facts of the right one changed by a lexicon, exact on `scenes`."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.lexicon import Lexicon, default_lexicon
from cwdpo.negatives.source import Candidate, Source, SourceContext, gold_texts, seeded
from cwdpo.scenes.grammar import NOUNS, PHRASES, Caption, parse
from cwdpo.scenes.scene_negatives import negative
from cwdpo.scenes.world import Scene

__all__ = ["DIFFICULTY_OF", "PerturbSource", "Slot", "caption_of", "change", "slots"]

_FACTS = {"hard": 1, "medium": 2, "easy": 100}
DIFFICULTY_OF = {1: "hard", 2: "medium"}
"""Difficulty by the number of facts that were changed; three and more are easy."""

_SOUNDS_LIKE_VOWEL = re.compile(r"(?!uni|use|usu|eu|one\b|once\b|ukulele)[aeiou]|hour|honest|heir", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Slot:
    """A place in a text that states a fact, and what else could stand there.

    Attributes:
        kind: Kind of the fact.
        start: First character.
        end: Character after the last.
        options: Phrases that make the fact wrong.
    """

    kind: str
    start: int
    end: int
    options: tuple[str, ...]


def slots(text: str, golds: Sequence[str], lexicon: Lexicon) -> list[Slot]:
    """Return the facts of `text` that can be made wrong.

    Args:
        text: A right caption.
        golds: All right captions of the picture: what any of them speaks of is not put in.
        lexicon: The words.
    """
    said: set[str] = set().union(*(lexicon.concepts(gold) for gold in golds)) if golds else set()
    found: list[Slot] = []
    for hit in lexicon.find(text, strict=True):
        options = lexicon.options(hit.entry, text[hit.start : hit.end])
        fit = tuple(phrase for phrase, concept in options if concept not in said)
        if fit:
            found.append(Slot(hit.entry.kind, hit.start, hit.end, fit))
    return found


def change(text: str, places: Sequence[Slot], rng: random.Random) -> str:
    """Put a wrong phrase into each of `places`; capital letters and a/an are kept right."""
    for slot in sorted(places, key=lambda s: -s.start):
        old, new = text[slot.start : slot.end], rng.choice(slot.options)
        if old.isupper() and len(old) > 1:
            new = new.upper()
        elif old[:1].isupper():
            new = new[:1].upper() + new[1:]
        before = text[: slot.start]
        if (found := _ARTICLE.search(before)) is not None:
            before = before[: found.start()] + _article(found[1], new) + found[2]
        text = before + new + text[slot.end :]
    return text


def _article(written: str, phrase: str) -> str:
    article = "an" if _SOUNDS_LIKE_VOWEL.match(phrase) else "a"
    return article.capitalize() if written[0].isupper() else article


def caption_of(text: str) -> Caption | None:
    """Return a caption of the embedded world with its choice of words, or None where `text` is none."""
    meaning = parse(text)
    if meaning is None:
        return None
    plain = " ".join(text.split())
    nouns = itertools.product(range(2), repeat=len(meaning.mentions))
    for noun, phrase in itertools.product(nouns, itertools.product(range(2), repeat=len(meaning.relations))):
        caption = Caption(meaning, noun, phrase)
        if caption.text == plain:
            return caption
    return None


assert all(len(words) == 2 for words in (*NOUNS.values(), *PHRASES.values()))


def _pick(places: Sequence[Slot], count: int, rng: random.Random) -> list[Slot]:
    """Draw places: first the kind of fact, then one of its places, so that objects, the commonest, do not crowd out."""
    left = list(places)
    taken: list[Slot] = []
    for _ in range(count):
        kind = rng.choice(sorted({slot.kind for slot in left}))
        taken.append(rng.choice([slot for slot in left if slot.kind == kind]))
        left.remove(taken[-1])
    return taken


class PerturbSource(Source):
    """The chosen response with facts changed by a lexicon (objects, colours, numbers, …); exact on `scenes`.

    Difficulty is the number of facts changed: one is hard, two medium, more easy (all that can be). On rows of `scenes`
    the negative is exact (`cwdpo.scenes.scene_negatives`), elsewhere words are exchanged by the lexicon.
    """

    name: ClassVar[str] = "perturb"
    order: ClassVar[int] = 4

    perturb_difficulty: list[Literal["hard", "medium", "easy"]] = Field(default=["hard"], min_length=1)
    """What `perturb` makes, drawn from this list: one fact changed, two, or all that can be."""

    def candidates(self, group: PromptGroup, count: int, context: SourceContext) -> Sequence[Candidate]:
        """Return up to twice as many wrong captions as are wanted; none if the lexicon knows no word."""
        rng = seeded(context.seed, group.id, "perturb")
        text = group.chosen.text
        caption = caption_of(text) if "scene" in group.facts else None
        found: dict[str, Candidate] = {}
        if caption is not None:
            scene = Scene.from_json(group.facts["scene"])
            for _ in range(2 * count):
                difficulty = rng.choice(self.perturb_difficulty)
                wrong = Candidate(negative(caption, scene, difficulty, rng).text, difficulty)
                found.setdefault(wrong.key, wrong)
            return list(found.values())
        places = slots(text, gold_texts(group), default_lexicon())
        for _ in range(4 * count if places else 0):
            facts = min(_FACTS[rng.choice(self.perturb_difficulty)], len(places))
            chosen = sorted(_pick(places, facts, rng), key=lambda s: s.start)
            changed = tuple(slot.kind for slot in chosen)
            wrong = Candidate(change(text, chosen, rng), DIFFICULTY_OF.get(facts, "easy"), changed)
            found.setdefault(wrong.key, wrong)
        return list(found.values())[: 2 * count]
