"""MMMU (validation): official Parquet files, official reading of answers.

The rules are those of its official evaluation, oddities included, so that figures compare; a golden file made with the
official code pins them (tests/evaluation/mmmu_golden.json). Only the last resort differs: where nothing can be read the
official code draws from one random stream over all questions; here each question draws by its own id, so that the
figure does not depend on the order, and how often that happened is reported.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.schema import ImageRef, PromptGroup
from cwdpo.errors import DataError, one_line
from cwdpo.evaluation.benchmarks.questions import (
    BY_LETTER,
    Benchmark,
    Question,
    Scored,
    by_category,
    share_right,
)

__all__ = ["MMMU", "draw_choice", "open_is_right", "parquet_rows", "read_choice", "read_open"]

_BY_PHRASE = "Answer the question using a single word or phrase."
_IMAGE = re.compile(r"<image (\d+)>")


class MMMU(Benchmark):
    """MMMU (Yue et al., 2024): choices and open questions of 30 subjects."""

    name: ClassVar[str] = "mmmu"
    title: ClassVar[str] = "MMMU"
    data: ClassVar[str] = "folder of Parquet files, as on the hub"

    seed: int = 0
    """Seed of the draw where no option can be read."""

    def read(self, path: Path) -> list[Question]:
        """Read a file, or a folder with `validation-*.parquet` in it or in its folders (one a subject)."""
        files = [path] if path.is_file() else sorted(path.rglob("validation-*.parquet"))
        if not files:
            raise DataError(f"{path}: no validation-*.parquet in it; give the folder of MMMU as it is on the hub")
        return [_question(row, f"{file}:{number}") for file in files for number, row in parquet_rows(file)]

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Score by MMMU's rules; `unreadable` is the share of choices that were drawn."""
        rows: list[dict[str, Any]] = []
        for question, answer in zip(questions, answers, strict=True):
            read = read_choice(answer, question.options) if question.options else None
            taken = read or draw_choice(question.id, question.options, self.seed) if question.options else None
            right = taken in question.gold if taken is not None else open_is_right(answer, question.gold)
            row = {"id": question.id, "category": question.category, "answer": answer, "read": read, "right": right}
            rows.append({**row, "open": not question.options})
        choices = [row for row in rows if not row["open"]]
        unread = sum(row["read"] is None for row in choices)
        return Scored(
            questions=len(rows),
            figures={
                "accuracy": share_right(rows),
                "accuracy_choice": share_right(choices),
                "accuracy_open": share_right([row for row in rows if row["open"]]),
                "unreadable": unread / len(choices) if choices else None,
            },
            matching="official: last letter in brackets, letter, option text; else drawn by id; open by key phrases",
            categories=by_category(rows),
            rows=rows,
        )


def parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a Parquet file with their numbers, from 1.

    Raises:
        DataError: It cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table, number = pyarrow.parquet.ParquetFile(file), 0
        for group in range(table.num_row_groups):
            for row in table.read_row_group(group).to_pylist():
                number += 1
                yield number, row
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{file}: not a Parquet file that can be read ({one_line(error, 120)})") from error


def _question(row: Mapping[str, Any], where: str) -> Question:
    try:
        name, text, kind = str(row["id"]), str(row["question"]), str(row["question_type"])
        texts, answer = _listed(row["options"]), row["answer"]
    except (KeyError, ValueError, SyntaxError) as error:
        raise DataError(f"{where}: not a row of MMMU ({one_line(repr(error), 120)})") from error
    options = {chr(ord("A") + i): str(option) for i, option in enumerate(texts)} if kind == "multiple-choice" else {}
    gold = tuple(map(str, _listed(answer))) if not options else (str(answer),)
    if options:
        lines = "\n".join(f"({letter}) {option}" for letter, option in options.items())
        text = f"{text}\n{lines}\n{BY_LETTER}"
    else:
        text = f"{text}\n{_BY_PHRASE}"
    parts, images = _interleaved(text, row, where)
    prompt = PromptGroup(name, images, ({"role": "user", "content": parts},), (), origin=where)
    subject = re.sub(r"^[a-z]+_|_\d+$", "", name)
    return Question(id=name, prompt=prompt, options=options, gold=gold, category=subject)


def _listed(value: Any) -> list[Any]:
    """Return a list that may be written as text, as MMMU's files have it; a single answer is a list of one."""
    if isinstance(value, list):
        return value
    text = str(value)
    return list(ast.literal_eval(text)) if text.startswith("[") else [text]


def _interleaved(text: str, row: Mapping[str, Any], where: str) -> tuple[list[dict[str, str]], tuple[ImageRef, ...]]:
    """Return the text with its images where `<image 1>` stands in it."""
    parts: list[dict[str, str]] = []
    images: list[ImageRef] = []
    for index, piece in enumerate(_IMAGE.split(text)):
        if index % 2 == 0:
            if piece:
                parts.append({"type": "text", "text": piece})
            continue
        stored: Any = row.get(f"image_{piece}")
        if not isinstance(stored, Mapping) or not stored.get("bytes"):
            raise DataError(f"{where}: <image {piece}> is in the text, but image_{piece} holds no picture")
        parts.append({"type": "image"})
        images.append(ImageRef(data=stored["bytes"]))
    return parts, tuple(images)


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
