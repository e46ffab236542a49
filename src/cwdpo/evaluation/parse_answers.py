"""From what a model writes to the answer that counts: MMMU's rules, and letter, then option text, for MMBench.

MMMU's are those of its official evaluation, oddities included, so that figures compare; a golden file made with the
official code holds them (tests/evaluation/mmmu_golden.json). Only its last resort differs: where nothing can be read
the official code draws from one random stream over all questions; here each question draws by its own id, so that the
figure does not depend on the order, and how often that happened is reported.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

__all__ = ["draw_choice", "open_is_right", "read_choice", "read_letter_or_text", "read_open"]

_MARKS = (",", ".", "!", "?", ";", ":", "'")
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
"""With thousands separators, with an exponent, plain."""


def read_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the option that an answer names last: by letter in brackets, else by letter, else by its text.

    Args:
        answer: What the model wrote.
        options: Letter to text.

    Returns:
        The letter, or None where nothing can be read.
    """
    for mark in _MARKS:
        answer = answer.strip(mark)
    padded = f" {answer} "
    for frame in ("({})", " {} "):
        found = _last(padded, {letter: frame.format(letter) for letter in options})
        if found is not None:
            return found
    if len(padded.split()) > 5:
        return _last(padded.lower(), {letter: text.lower() for letter, text in options.items()})
    return None


def _last(text: str, patterns: Mapping[str, str]) -> str | None:
    """Return the name of the pattern whose last occurrence begins latest."""
    places = {name: text.rfind(pattern) for name, pattern in patterns.items() if pattern in text}
    return max(places, key=places.__getitem__) if places else None


def draw_choice(question: str, options: Mapping[str, str], seed: int = 0) -> str:
    """Return the option that is taken where none can be read: a draw by the question's id alone."""
    return random.Random(f"{seed}/{question}").choice(list(options))


def read_open(answer: str) -> list[str | float]:
    """Return what an answer to an open question may mean: its key phrases, and the numbers in them."""
    phrases = _key_phrases(answer)
    numbers = [n for phrase in phrases for pattern in _NUMBERS for n in pattern.findall(phrase)]
    return list(dict.fromkeys(value for text in (*phrases, *numbers) for value in _normal(text)))


def _key_phrases(answer: str) -> list[str]:
    """Return from each line the shortest rest after a word that announces the answer; all of it where none has one."""
    whole = answer.strip().strip(".").lower()
    lines, found = whole.split("\n"), list[str]()
    for index, line in enumerate(lines):
        keys = (*_KEYS, "=") if index == len(lines) - 1 else _KEYS
        rests = [line.split(key)[-1].strip() for key in keys if key in line]
        shortest = ""
        for rest in rests:
            if not shortest or len(rest) < len(shortest):
                shortest = rest
        if shortest and shortest not in _MARKS:
            found.append(shortest)
    return found or [whole]


def _normal(text: str) -> list[str | float]:
    """Return a number rounded to two decimals, or the text in lower case; one letter only beside a blank."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def open_is_right(answer: str, gold: Sequence[str]) -> bool:
    """Whether a number of the answer equals a gold one, or a phrase of it holds a gold text."""
    wanted = [value for text in gold for value in _normal(text)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in wanted
        for value in read_open(answer)
    )


_LETTER = re.compile(r"[^\w\s]")


def read_letter_or_text(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the option that an answer names: the only letter in it, else the only option text in it, else None.

    "A" in a longer answer is an article as often as an option: it counts where it stands alone, first with a mark after
    it ("A." or "A:"), or in brackets.

    Args:
        answer: What the model wrote.
        options: Letter to text.
    """
    answer = answer.strip()
    words = _LETTER.sub(" ", answer).split()
    letters = {word for word in words if word in options}
    if "A" in letters and len(words) > 1 and not re.search(r"^A\s*[.:)]|\(A\)", answer):
        letters.discard("A")
    if len(letters) == 1:
        return letters.pop()
    lower = answer.lower()
    named = [letter for letter, text in options.items() if text and text.lower() in lower]
    return named[0] if len(named) == 1 else None
