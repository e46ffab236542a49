"""MMMU (validation) and MMBench 1.1 from their official files: questions as prompts, and scores of the answers."""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwdpo.data.schema import ImageRef, PromptGroup
from cwdpo.errors import DataError, one_line
from cwdpo.evaluation.parse_answers import draw_choice, open_is_right, read_choice, read_letter_or_text

__all__ = ["READERS", "Question", "read_mmbench", "read_mmmu", "score_mmbench", "score_mmmu"]

_BY_LETTER = "Answer with the option's letter from the given choices directly."
_BY_PHRASE = "Answer the question using a single word or phrase."
_IMAGE = re.compile(r"<image (\d+)>")
_ROTATION = 1_000_000
"""Rotations of an MMBench question have its index plus multiples of this."""


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    Attributes:
        id: Its id, unique in the benchmark.
        prompt: What the model is given.
        options: Letter to text; empty where the question is open.
        gold: The right letter, or the right answers.
        category: The row of the table that it counts in.
        circle: The question that this is a rotation of; its own id where there are none.
    """

    id: str
    prompt: PromptGroup
    options: Mapping[str, str]
    gold: tuple[str, ...]
    category: str
    circle: str


# -- MMMU --------------------------------------------------------------------------------------------------------------


def read_mmmu(path: Path) -> list[Question]:
    """Read MMMU's Parquet files.

    Args:
        path: A file, or a folder with `validation-*.parquet` in it or in its folders (one a subject, as on the hub).

    Raises:
        DataError: No such file, one that is no Parquet, or a row that is not MMMU's.
    """
    files = [path] if path.is_file() else sorted(path.rglob("validation-*.parquet"))
    if not files:
        raise DataError(f"{path}: no validation-*.parquet in it; give the folder of MMMU as it is on the hub")
    return [_mmmu_question(row, f"{file}:{number}") for file in files for number, row in _parquet_rows(file)]


def _parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _mmmu_question(row: Mapping[str, Any], where: str) -> Question:
    try:
        name, text, kind = str(row["id"]), str(row["question"]), str(row["question_type"])
        texts, answer = _listed(row["options"]), row["answer"]
    except (KeyError, ValueError, SyntaxError) as error:
        raise DataError(f"{where}: not a row of MMMU ({one_line(repr(error), 120)})") from error
    options = {chr(ord("A") + i): str(option) for i, option in enumerate(texts)} if kind == "multiple-choice" else {}
    gold = tuple(map(str, _listed(answer))) if not options else (str(answer),)
    if options:
        lines = "\n".join(f"({letter}) {option}" for letter, option in options.items())
        text = f"{text}\n{lines}\n{_BY_LETTER}"
    else:
        text = f"{text}\n{_BY_PHRASE}"
    parts, images = _interleaved(text, row, where)
    prompt = PromptGroup(name, images, ({"role": "user", "content": parts},), (), origin=where)
    subject = re.sub(r"^[a-z]+_|_\d+$", "", name)
    return Question(name, prompt, options, gold, subject, name)


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


def score_mmmu(questions: Sequence[Question], answers: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Score answers by MMMU's rules.

    Args:
        questions: As `read_mmmu` gives them.
        answers: One each.
        seed: Of the draw where a choice cannot be read.

    Returns:
        `accuracy`; `unreadable`, the share of choices that were drawn; `categories`, and `rows`.
    """
    rows: list[dict[str, Any]] = []
    for question, answer in zip(questions, answers, strict=True):
        read = read_choice(answer, question.options) if question.options else None
        taken = read or draw_choice(question.id, question.options, seed) if question.options else None
        right = taken in question.gold if taken is not None else open_is_right(answer, question.gold)
        row = {"id": question.id, "category": question.category, "answer": answer, "read": read, "right": right}
        rows.append({**row, "open": not question.options})
    choices = [row for row in rows if not row["open"]]
    unread = sum(row["read"] is None for row in choices)
    return {
        "benchmark": "MMMU",
        "matching": "official: last letter in brackets, letter, option text; else drawn by id; open by key phrases",
        "questions": len(rows),
        "accuracy": _share(rows),
        "accuracy_choice": _share(choices),
        "accuracy_open": _share([row for row in rows if row["open"]]),
        "unreadable": unread / len(choices) if choices else None,
        "categories": _by_category(rows),
        "rows": rows,
    }


# -- MMBench -----------------------------------------------------------------------------------------------------------


def read_mmbench(path: Path) -> list[Question]:
    """Read MMBench's TSV file, with rotated options where it has them.

    A rotated row may hold the index of the row whose picture it shares instead of a picture.

    Raises:
        DataError: No such file, or a row that is not MMBench's.
    """
    rows = list(_tsv_rows(path))
    pictures: dict[str, str] = {row["index"]: row["image"] for _, row in rows}
    return [_mmbench_question(row, pictures, f"{path}:{number}") for number, row in rows]


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


def _mmbench_question(row: Mapping[str, str], pictures: Mapping[str, str], where: str) -> Question:
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
    content = [{"type": "image"}, {"type": "text", "text": "\n".join([*lines, _BY_LETTER])}]
    name = row["index"]
    prompt = PromptGroup(name, (ImageRef(data=data),), ({"role": "user", "content": content},), (), origin=where)
    return Question(name, prompt, options, (row["answer"],), row.get("category") or "", circle)


def score_mmbench(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """Score answers: row by row, and by CircularEval, where a question counts only if every rotation is right.

    Args:
        questions: As `read_mmbench` gives them.
        answers: One each.

    Returns:
        `accuracy` (CircularEval), `accuracy_rows`, `unreadable`, `categories` (CircularEval) and `rows`.
    """
    rows: list[dict[str, Any]] = []
    for question, answer in zip(questions, answers, strict=True):
        read = read_letter_or_text(answer, question.options)
        row = {"id": question.id, "circle": question.circle, "category": question.category, "answer": answer}
        rows.append({**row, "read": read, "right": read in question.gold})
    circles: dict[str, dict[str, Any]] = {}
    for row in rows:
        circle = circles.setdefault(row["circle"], {"category": row["category"], "right": True})
        circle["right"] = circle["right"] and row["right"]
    whole = list(circles.values())
    return {
        "benchmark": "MMBench",
        "matching": "exact: the only letter, else the only option text, else wrong",
        "questions": len(whole),
        "rotations": len(rows) / len(whole) if whole else None,
        "accuracy": _share(whole),
        "accuracy_rows": _share(rows),
        "unreadable": sum(row["read"] is None for row in rows) / len(rows) if rows else None,
        "categories": _by_category(whole),
        "rows": rows,
    }


def _share(rows: Sequence[Mapping[str, Any]]) -> float | None:
    return sum(row["right"] for row in rows) / len(rows) if rows else None


def _by_category(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    names = sorted({row["category"] for row in rows})
    parts = {name: [row for row in rows if row["category"] == name] for name in names}
    return {name: {"questions": len(part), "accuracy": _share(part)} for name, part in parts.items()}


READERS: Mapping[str, Callable[[Path], list[Question]]] = {"mmmu": read_mmmu, "mmbench": read_mmbench}
