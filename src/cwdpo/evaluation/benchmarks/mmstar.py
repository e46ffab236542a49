"""MMStar: choices that need the picture; official Parquet file, official reading of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.schema import ImageRef, PromptGroup, user_message
from cwdpo.errors import DataError
from cwdpo.evaluation.benchmarks.mmmu import parquet_rows
from cwdpo.evaluation.benchmarks.questions import BY_LETTER, Benchmark, Question, Scored, by_category, share_right

__all__ = ["MMStar", "read_mmstar"]

_STARTS = ("", "(", "option ", "the answer is ")


class MMStar(Benchmark):
    """MMStar (Chen et al., 2024): choices of six core abilities."""

    name: ClassVar[str] = "mmstar"
    title: ClassVar[str] = "MMStar"
    data: ClassVar[str] = "mmstar.parquet, or the folder that it is in"
    published: ClassVar[str] = "https://huggingface.co/datasets/Lin-Chen/MMStar"
    suites: ClassVar[tuple[str, ...]] = ("hallucination",)

    def read(self, path: Path) -> list[Question]:
        """Read the Parquet file."""
        file = path if path.is_file() else path / "mmstar.parquet"
        if not file.is_file():
            raise self.missing(file)
        return [_question(row, f"{file}:{number}") for number, row in parquet_rows(file)]

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Score by MMStar's rule; what begins with no option is wrong."""
        rows: list[dict[str, Any]] = []
        for q, answer in zip(questions, answers, strict=True):
            read = read_mmstar(answer, q.options)
            row = {"id": q.id, "category": q.category, "answer": answer, "read": read}
            rows.append({**row, "right": read in q.gold})
        return Scored(
            questions=len(rows),
            figures={
                "accuracy": share_right(rows),
                "unreadable": sum(r["read"] is None for r in rows) / max(1, len(rows)),
            },
            matching="official: the letter at the start, in brackets, after `option ` or `the answer is `",
            categories=by_category(rows),
            rows=rows,
        )


def _question(row: Mapping[str, Any], where: str) -> Question:
    image, text, answer = row.get("image"), row.get("question"), str(row.get("answer")).strip()
    data = image.get("bytes") if isinstance(image, Mapping) else image
    if not isinstance(data, bytes) or not isinstance(text, str) or answer not in tuple("ABCD"):
        raise DataError(f"{where}: not a row of MMStar with image, question and answer; give the official file")
    name = str(row.get("index", where.rpartition(":")[2]))
    prompt = PromptGroup(name, (ImageRef(data=data),), (user_message(f"{text}\n{BY_LETTER}"),), (), origin=where)
    options = dict.fromkeys("ABCD", "")
    return Question(id=name, prompt=prompt, options=options, gold=(answer,), category=str(row.get("category", "")))


def read_mmstar(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer begins with, in one of the forms that MMStar's evaluation knows."""
    text = answer.lower().strip().replace("\n", " ")
    for letter in options:
        if any(text.startswith(start + letter.lower()) for start in _STARTS):
            return letter
    return None
