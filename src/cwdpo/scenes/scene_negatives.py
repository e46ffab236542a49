"""Wrong captions of a known difficulty: hard has one attribute wrong, medium two, easy all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

from cwdpo.scenes.grammar import Caption, Meaning, Mention, count_errors
from cwdpo.scenes.world import COLOURS, KINDS, RELATIONS, SIZES, Scene, Shape

__all__ = ["negative"]

_Slot = tuple[str, int]
"""An attribute of a meaning: its name and the index of its mention or relation."""


def negative(gold: Caption, scene: Scene, difficulty: str, rng: random.Random) -> Caption:
    """Return a wrong caption with the form and synonyms of `gold`.

    Args:
        gold: A right caption of the scene that mentions every shape.
        scene: What the picture shows.
        difficulty: `hard` (exactly one attribute wrong in the most favourable reading), `medium` (exactly two), or
            `easy` (every attribute wrong of its own shape, and no colour or kind of the scene is left).
        rng: Source of all chance. Which attribute, then which wrong value, are each drawn uniformly from those left.
    """
    if difficulty == "easy":
        return replace(gold, meaning=_all_wrong(gold.meaning, scene, rng))
    wanted = {"hard": 1, "medium": 2}[difficulty]
    places = list(itertools.combinations(_slots(gold.meaning), wanted))
    rng.shuffle(places)
    for place in places:
        for meaning in _changed(gold.meaning, scene, place, rng):
            if count_errors(meaning, scene) == wanted:
                return replace(gold, meaning=meaning)
    raise AssertionError(f"every right caption has a {difficulty} negative: {gold.text!r}")


def _slots(meaning: Meaning) -> list[_Slot]:
    slots: list[_Slot] = [("relation", i) for i in range(len(meaning.relations))]
    for i, mention in enumerate(meaning.mentions):
        slots += [("colour", i), ("kind", i)]
        if mention.size is not None:
            slots.append(("size", i))
    return slots


def _shape_of(mention: Mention, scene: Scene) -> Shape:
    """Return the one shape that a right mention means: no two shapes share colour and kind."""
    return next(s for s in scene.shapes if (s.colour, s.kind) == (mention.colour, mention.kind))


def _false_relations(meaning: Meaning, scene: Scene, index: int) -> list[str]:
    first, other = (_shape_of(meaning.mentions[i], scene) for i in (0, index + 1))
    return [r for r in RELATIONS if not first.stands(r, other)]


def _changed(meaning: Meaning, scene: Scene, place: tuple[_Slot, ...], rng: random.Random) -> Iterator[Meaning]:
    """Yield the meanings that differ from `meaning` in each slot of `place` and nowhere else, in random order."""
    options: list[list[str]] = []
    for name, i in place:
        if name == "relation":
            options.append(_false_relations(meaning, scene, i))
        else:
            values = {"colour": COLOURS, "kind": KINDS, "size": SIZES}[name]
            options.append([v for v in values if v != getattr(meaning.mentions[i], name)])
    combinations = list(itertools.product(*options))
    rng.shuffle(combinations)
    for values in combinations:
        mentions, relations = list(meaning.mentions), list(meaning.relations)
        for (name, i), value in zip(place, values, strict=True):
            if name == "relation":
                relations[i] = value
            else:
                mentions[i] = replace(mentions[i], **{name: value})
        yield Meaning(tuple(mentions), tuple(relations))


def _all_wrong(meaning: Meaning, scene: Scene, rng: random.Random) -> Meaning:
    colours = [c for c in COLOURS if all(c != s.colour for s in scene.shapes)]
    kinds = [k for k in KINDS if all(k != s.kind for s in scene.shapes)]
    mentions = tuple(
        Mention(rng.choice(colours), rng.choice(kinds), None if m.size is None else _other_size(m.size))
        for m in meaning.mentions
    )
    relations = tuple(rng.choice(_false_relations(meaning, scene, i)) for i in range(len(meaning.relations)))
    return Meaning(mentions, relations)


def _other_size(size: str) -> str:
    return next(s for s in SIZES if s != size)
