"""A wrong caption made right with as few changes as can be."""

from __future__ import annotations

import itertools
from dataclasses import replace

from cwdpo.scenes.grammar import Caption, Meaning, Mention
from cwdpo.scenes.world import RELATIONS, Scene, Shape

__all__ = ["corrected"]


def corrected(caption: Caption, scene: Scene) -> Caption | None:
    """Return the caption with the fewest attributes changed so that all it says is true; None where it cannot be.

    What is right stays as it is said, words and order too. A caption that speaks of fewer or more shapes than there
    are would need another form, not another word: it has no correction.
    """
    meaning = caption.meaning
    if len(meaning.mentions) != len(scene.shapes):
        return None
    readings = (_read_as(meaning, shapes) for shapes in itertools.permutations(scene.shapes))
    return replace(caption, meaning=min(readings, key=lambda new: _changes(meaning, new)))


def _read_as(meaning: Meaning, shapes: tuple[Shape, ...]) -> Meaning:
    """Return what is to be said where the mentions stand for these shapes."""
    first = shapes[0]
    mentions = tuple(
        Mention(s.colour, s.kind, None if m.size is None else s.size)
        for m, s in zip(meaning.mentions, shapes, strict=True)
    )
    relations = tuple(
        relation if first.stands(relation, other) else next(r for r in RELATIONS if first.stands(r, other))
        for relation, other in zip(meaning.relations, shapes[1:], strict=True)
    )
    return Meaning(mentions, relations)


def _changes(old: Meaning, new: Meaning) -> int:
    said = itertools.chain.from_iterable(
        ((a.colour, b.colour), (a.kind, b.kind), (a.size, b.size))
        for a, b in zip(old.mentions, new.mentions, strict=True)
    )
    return sum(a != b for a, b in itertools.chain(said, zip(old.relations, new.relations, strict=True)))
