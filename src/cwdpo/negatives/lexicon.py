"""Words of everyday captions: what they mean, in which form they stand, what they may be exchanged for."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import yaml

__all__ = ["Entry", "Found", "Lexicon", "default_lexicon"]

Kind = Literal["colour", "number", "object", "attribute", "action", "relation", "fixed"]

_TOKEN = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_LONGEST = 4
"""Words of the longest phrase."""


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS = _set(
    "a an the of in on at to with and is are was were be being been has have had it its his her him he she their them "
    "they there this that these those who which while as for from by or some another other each one both together "
    "very s"
)
"""Words that say nothing of a picture by themselves."""

_ARTICLES = _set("a an the")
_BEFORE_NOUNS = _ARTICLES | _set("his her its their of in on at with some two three four five this that")
_PLURAL_SUBJECTS = _set("people men women children to they who kids and")
_AFTER_NOUNS: frozenset[Kind] = frozenset(("action", "relation", "fixed"))
_POSSESSIVES = _ARTICLES | _set("his her its their")
_AFTER_VERBS = _POSSESSIVES | _set("out up")


@dataclass(frozen=True)
class Entry:
    """One word or phrase in one form.

    Attributes:
        kind: What kind of fact it states.
        group: Group of the lexicon in which it may be exchanged.
        meaning: First word of its line: synonyms have the same.
        form: Which form of the word (nouns: singular, plural; verbs: base, third person, participle, past).
    """

    kind: Kind
    group: str
    meaning: str
    form: int = 0

    @property
    def concept(self) -> str:
        """The meaning, told apart from the same word of another kind."""
        return f"{self.kind}:{self.meaning}"


@dataclass(frozen=True)
class Found:
    """An entry found in a text, from character `start` up to `end`."""

    entry: Entry
    start: int
    end: int


class Lexicon:
    """The words of a lexicon file.

    Args:
        source: What the file holds (see `lexicon.yaml`).
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._entries: dict[tuple[str, ...], list[Entry]] = {}
        self._lines: dict[str, list[tuple[str, ...]]] = {}
        self._synonyms: dict[str, list[tuple[str, ...]]] = {}
        self._alike = {frozenset(pair) for pair in source["alike"]}
        self._relations: Mapping[str, Sequence[str]] = source["relations"]
        self._same = {word: group[0] for group in source["same_relations"] for word in group}
        self._converse: Mapping[str, str] = source["converse_relations"]
        for phrase in source["fixed"]:
            self._put(phrase, Entry("fixed", "", phrase))
        self._add_group("colour", "colours", source["colours"])
        self._add_group("number", "numbers", source["numbers"])
        sections: dict[Kind, str] = {"object": "objects", "attribute": "attributes", "action": "actions"}
        for kind, section in sections.items():
            for name, lines in source[section].items():
                self._add_group(kind, f"{section}.{name}", lines)
        for phrase in self._relations:
            self._put(phrase, Entry("relation", "relations", self._same.get(phrase, phrase)))

    def _put(self, phrase: str, entry: Entry) -> None:
        self._entries.setdefault(tuple(phrase.split()), []).append(entry)

    def _add_group(self, kind: Kind, group: str, lines: Sequence[str]) -> None:
        self._lines[group] = []
        for line in lines:
            synonyms = [_forms(word.strip(), kind) for word in line.split(",")]
            self._lines[group].append(synonyms[0])
            self._synonyms[f"{kind}:{synonyms[0][0]}"] = synonyms
            for forms in synonyms:
                for form in reversed(range(len(forms))):
                    self._put(forms[form], Entry(kind, group, synonyms[0][0], form))

    def phrases(self) -> list[str]:
        """Return every phrase that is known, in every form."""
        return [" ".join(words) for words in self._entries]

    def find(self, text: str, *, strict: bool = False) -> list[Found]:
        """Return the entries that stand in a text, the longest phrase at each place, from left to right.

        Args:
            text: The text.
            strict: Leave out words that cannot be exchanged alone, such as the first noun of two.
        """
        tokens = [(m.group().lower(), m.start(), m.end()) for m in _TOKEN.finditer(text)]
        found: list[Found] = []
        i = 0
        while i < len(tokens):
            step = 1
            for length in range(min(_LONGEST, len(tokens) - i), 0, -1):
                entries = self._entries.get(tuple(word for word, _, _ in tokens[i : i + length]), [])
                before = tokens[i - 1][0] if i else ""
                after = tokens[i + length][0] if i + length < len(tokens) else ""
                fitting = next((e for e in entries if self._fits(e, before, after, strict)), None)
                if fitting is not None:
                    found.append(Found(fitting, tokens[i][1], tokens[i + length - 1][2]))
                    step = length
                    break
            i += step
        return found

    def _fits(self, entry: Entry, before: str, after: str, strict: bool) -> bool:
        """Whether a word with these neighbours is likely what the entry takes it for."""
        kind, form = entry.kind, entry.form
        if kind == "colour" and entry.meaning in ("orange", "gold"):
            return after not in STOP_WORDS and after != ""
        if kind == "action":
            if form == 0 and before not in _PLURAL_SUBJECTS and not _plural(before):
                return False
            if form == 1 and before in _BEFORE_NOUNS:
                return False
            if strict and entry.group == "actions.posture" and after in _POSSESSIVES:
                return False
            return form != 2 or before not in _ARTICLES or (after,) in self._entries
        if not strict:
            return True
        kinds = {e.kind for e in self._entries.get((after,), [])}
        if kind == "object":
            if form == 1:
                return after not in _AFTER_VERBS
            return (
                after in STOP_WORDS or after == "" or after.endswith(("s", "ing", "ed")) or bool(kinds & _AFTER_NOUNS)
            )
        people = any(e.group == "objects.people" for e in self._entries.get((after,), []))
        return not (entry.group == "attributes.size" and people)

    def options(self, entry: Entry, phrase: str) -> list[tuple[str, str]]:
        """Return what an entry may be exchanged for: (phrase in the same form, its concept)."""
        if entry.kind == "relation":
            return [(other, f"relation:{self._same.get(other, other)}") for other in self._relations[phrase.lower()]]
        if entry.kind == "fixed" or (entry.kind == "action" and entry.form == 3):
            return []
        return [
            (forms[min(entry.form, len(forms) - 1)], f"{entry.kind}:{forms[0]}")
            for forms in self._lines[entry.group]
            if forms[0] != entry.meaning and frozenset((forms[0], entry.meaning)) not in self._alike
        ]

    def synonyms(self, entry: Entry, phrase: str) -> list[str]:
        """Return what says the same as a phrase that `find` took for `entry`, in the same form; often nothing."""
        if entry.kind == "relation":
            same = [other for other in self._relations if self._same.get(other, other) == entry.meaning]
            # `on the left` stands alone, `left of` does not.
            fit = [other for other in same if other.endswith(" of") == phrase.lower().endswith(" of")]
            return [other for other in fit if other != phrase.lower()]
        lines = self._synonyms.get(entry.concept, [])
        forms = [forms[min(entry.form, len(forms) - 1)] for forms in lines]
        return [form for form in forms if form != phrase.lower()]

    def concepts(self, text: str) -> set[str]:
        """Return what a text speaks of: concepts, stems of other words, whose attribute, what stands where to what.

        `a red car behind a dog` speaks of `object:car`, `object:dog`, `colour:red object:car` and of `object:dog in
        front of object:car`: a relation that can be said from either side is said from one.
        """
        found = [f for f in self.find(text) if f.entry.kind != "fixed"]
        edges = [0, *(edge for f in found for edge in (f.start, f.end)), len(text)]
        between = (text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
        spoken = {stem(w) for part in between for w in _TOKEN.findall(part.lower()) if w not in STOP_WORDS}
        attributes: list[str] = []
        first, relation = "", ""
        for entry in (f.entry for f in found):
            if entry.kind in ("relation", "action") and relation:
                spoken.add(f"relation:{relation}")  # to nothing that the lexicon knows
            if entry.kind == "relation":
                relation = entry.meaning
                continue
            spoken.add(entry.concept)
            if entry.kind in ("colour", "number", "attribute"):
                attributes.append(entry.concept)
                continue
            if entry.kind == "object":
                spoken |= {f"{attribute} {entry.concept}" for attribute in attributes}
                if relation:
                    spoken.add(self._related(first, relation, entry.concept) if first else f"relation:{relation}")
                # A caption goes on about what it began with: `a dog near a cat and behind a car`.
                first, relation = first or entry.concept, ""
            else:
                first, relation = "", ""
            attributes = []
        return spoken | ({f"relation:{relation}"} if relation else set())

    def _related(self, one: str, relation: str, other: str) -> str:
        if relation in self._converse:
            one, relation, other = other, self._converse[relation], one
        elif relation == "next to":
            one, other = sorted((one, other))
        return f"{one} {relation} {other}"


def _forms(word: str, kind: Kind) -> tuple[str, ...]:
    forms = tuple(word.split("/"))
    if kind == "object" and len(forms) == 1:
        return (word, f"{word}s")
    assert kind != "action" or len(forms) == 4, word
    return forms


def _plural(word: str) -> bool:
    return word.endswith("s") and word not in STOP_WORDS


def stem(word: str) -> str:
    """Return a word without its commonest endings: enough to see that `trees` and `tree` are one word."""
    word = word.removesuffix("'s")
    for ending, stump in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("ing", ""), ("ed", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending) + stump
            return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls" else word
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


@functools.cache
def default_lexicon() -> Lexicon:
    """Return the lexicon that ships with cwdpo."""
    path = files("cwdpo.negatives") / "lexicon.yaml"
    return Lexicon(yaml.safe_load(path.read_text(encoding="utf-8")))  # "off" is quoted there, or it would be false
