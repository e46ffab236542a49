"""MMBench 1.1: official TSV file, CircularEval."""

from __future__ import annotations

import base64
import binascii
import csv
import re
import sys
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

__all__ = ["MMBench", "read_letter_or_text"]

_ROTATION = 1_000_000
"""Rotations of a question have its index plus multiples of this."""


class MMBench(Benchmark):
    """MMBench 1.1 (Liu et al., 2024): choices; a question counts only if it is right under every rotation."""

    name: ClassVar[str] = "mmbench"
    title: ClassVar[str] = "MMBench"
    data: ClassVar[str] = "the .tsv file, with or without rotated options"

    def read(self, path: Path) -> list[Question]:
        """Read the TSV file; a rotated row may hold the index of the row whose picture it shares, not a picture."""
        rows = list(_tsv_rows(path))
        pictures: dict[str, str] = {row["index"]: row["image"] for _, row in rows}
        return [_question(row, pictures, f"{path}:{number}") for number, row in rows]

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Score by CircularEval (`accuracy`) and row by row (`accuracy_rows`)."""
        rows: list[dict[str, Any]] = []
        for question, answer in zip(questions, answers, strict=True):
            read = read_letter_or_text(answer, question.options)
            row = {"id": question.id, **question.facts, "category": question.category, "answer": answer}
            rows.append({**row, "read": read, "right": read in question.gold})
        circles: dict[str, dict[str, Any]] = {}
        for row in rows:
            circle = circles.setdefault(row["circle"], {"category": row["category"], "right": True})
            circle["right"] = circle["right"] and row["right"]
        whole = list(circles.values())
        return Scored(
            questions=len(whole),
            figures={
                "accuracy": share_right(whole),
                "accuracy_rows": share_right(rows),
                "unreadable": sum(row["read"] is None for row in rows) / len(rows) if rows else None,
            },
            matching="exact: the only letter, else the only option text, else wrong",
            categories=by_category(whole),
            rows=rows,
        )


def _tsv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give MMBench's .tsv")
    before = csv.field_size_limit(sys.maxsize)  # a field holds a picture
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            for number, row in enumerate(csv.DictReader(handle, delimiter="\t"), 2):
                missing = {"index", "question", "A", "B", "answer", "image"} - {
                    k for k, v in row.items() if v is not None
                }
                if missing:
                    raise DataError(f"{path}:{number}: not a row of MMBench: no {', '.join(sorted(missing))}")
                yield number, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a table that can be read ({one_line(error, 120)})") from error
    finally:
        csv.field_size_limit(before)


def _question(row: Mapping[str, str], pictures: Mapping[str, str], where: str) -> Question:
    picture = row["image"]
    if len(picture) <= 64:
        picture = pictures.get(picture, "")
    try:
        data = base64.b64decode(picture, validate=True)
        circle = str(int(row["index"]) % _ROTATION)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: index or image cannot be read ({one_line(error, 120)})") from error
    if not data:
        raise DataError(f"{where}: has no picture")
    options = {letter: row[letter] for letter in "ABCD" if row.get(letter) not in (None, "", "nan")}
    if row["answer"] not in options:
        raise DataError(f"{where}: answer {row['answer']!r} is none of its options; the test split has no answers")
    hint = row.get("hint") or ""
    lines = [*([hint] if hint not in ("", "nan") else []), row["question"]]
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    content = [{"type": "image"}, {"type": "text", "text": "\n".join([*lines, BY_LETTER])}]
    name = row["index"]
    prompt = PromptGroup(name, (ImageRef(data=data),), ({"role": "user", "content": content},), (), origin=where)
    facts, category = {"circle": circle}, row.get("category") or ""
    return Question(id=name, prompt=prompt, options=options, gold=(row["answer"],), category=category, facts=facts)


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
