"""What a benchmark is: questions with their prompts, and how answers become figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.schema import ImageRef, PromptGroup, user_message
from cwdpo.errors import DataError, one_line
from cwdpo.plugins import Registry
from cwdpo.section import Section

__all__ = [
    "BENCHMARKS",
    "BY_LETTER",
    "BY_WORD",
    "Benchmark",
    "Question",
    "Scored",
    "by_category",
    "first_word",
    "json_rows",
    "share_right",
    "yes_no_figures",
    "yes_no_question",
]

BY_LETTER = "Answer with the option's letter from the given choices directly."
BY_WORD = "Answer the question using a single word or phrase."


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of a benchmark.

    Attributes:
        id: Unique in the benchmark.
        prompt: What the model is given.
        options: What can be answered, by the letter or word that stands for it; empty where the question is open.
        gold: The right letter, or the right answers.
        category: The row of the table that it counts in.
        facts: What else the scoring needs.
    """

    id: str
    prompt: PromptGroup
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    gold: tuple[str, ...] = ()
    category: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The scores of a model's answers.

    Attributes:
        questions: How many count.
        figures: Shares by name, the main one first; None where nothing counts.
        matching: How answers were read, in words.
        categories: For each category `questions` and the main figure by its name.
        rows: What was read from each answer.
    """

    questions: int
    figures: Mapping[str, float | None]
    matching: str
    categories: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as a plain object, its figures beside the rest."""
        rest = {"matching": self.matching, "categories": dict(self.categories), "rows": list(self.rows)}
        return {"questions": self.questions, **self.figures, **rest}


class Benchmark(Section):
    """A benchmark. Fields of the class are its settings (`--set KEY=VALUE`).

    Attributes:
        name: What it is asked for by.
        title: What people call it.
        data: What `--data` must be.
        published: Where the official files are.
        suites: Suites that it belongs to (`--suite`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    data: ClassVar[str]
    published: ClassVar[str] = ""
    suites: ClassVar[tuple[str, ...]] = ()

    def missing(self, path: Path) -> DataError:
        """Return the error that says what is not there, where it is published and how it must lie."""
        return DataError(f"{path}: is not there; {self.title} is published at {self.published}; give {self.data}")

    def picture(self, folder: Path, name: str, *below: str) -> ImageRef:
        """Return a picture that lies in a folder, or in one of those below it.

        Raises:
            DataError: It lies in none.
        """
        found = next((p for part in ("", *below) if (p := folder / part / name).is_file()), None)
        if found is None:
            raise self.missing(folder / (below[0] if below else "") / name)
        return ImageRef(path=str(found.absolute()))

    def read(self, path: Path) -> list[Question]:
        """Read the questions from the official files.

        Raises:
            DataError: A file is missing, or is not the benchmark's.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no read(self, path)")

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Score one answer per question: what the model wrote, or by likelihood a key of its options."""
        raise NotImplementedError(f"{type(self).__name__} defines no score(self, questions, answers)")


BENCHMARKS = Registry("benchmark", "cwdpo.evaluation.benchmarks", Benchmark)
"""All benchmarks by name."""


def share_right(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the share of rows that are `right`."""
    return sum(row["right"] for row in rows) / len(rows) if rows else None


def by_category(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return number and accuracy of the rows of each category."""
    names = sorted({row["category"] for row in rows})
    parts = {name: [row for row in rows if row["category"] == name] for name in names}
    return {name: {"questions": len(part), "accuracy": share_right(part)} for name, part in parts.items()}


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON file: a list, or one object a line.

    Raises:
        DataError: It holds none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows: Any = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, text.splitlines()))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read ({one_line(error, 120)}); copy the file again") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must hold objects; give the official file")
    return rows


def yes_no_question(
    name: str, text: str, images: Sequence[ImageRef], gold: str, *, category: str, where: str, **facts: Any
) -> Question:
    """Return a question that is answered by yes or no."""
    message = user_message(text, len(images))
    prompt = PromptGroup(name, tuple(images), (message,), (), origin=where)
    options = {"yes": "Yes", "no": "No"}
    return Question(id=name, prompt=prompt, options=options, gold=(gold,), category=category, facts=facts)


def first_word(answer: str) -> str | None:
    """Return `yes` or `no` where an answer begins with it, else None."""
    word = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return word[1].lower() if word else None


def yes_no_figures(rows: Sequence[Mapping[str, Any]], positive: str = "yes") -> dict[str, float | None]:
    """Return accuracy, precision, recall, F1 and the share of yes, of rows with `read` and `gold`.

    Args:
        rows: The rows; what was read as neither is wrong.
        positive: The answer that precision and recall are of.
    """
    said, true = ([row for row in rows if row[key] == positive] for key in ("read", "gold"))
    hits = sum(row["gold"] == positive for row in said)
    precision, recall = (hits / len(part) if part else None for part in (said, true))
    f1 = 2 * hits / (len(said) + len(true)) if said or true else None
    yes = sum(row["read"] == "yes" for row in rows) / len(rows) if rows else None
    return {"accuracy": share_right(rows), "precision": precision, "recall": recall, "f1": f1, "yes_ratio": yes}
