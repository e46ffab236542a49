"""What a benchmark is: questions with their prompts, and how answers become figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.schema import PromptGroup
from cwdpo.plugins import Registry
from cwdpo.section import Section

__all__ = ["BENCHMARKS", "BY_LETTER", "Benchmark", "Question", "Scored", "by_category", "share_right"]

BY_LETTER = "Answer with the option's letter from the given choices directly."


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
    """

    name: ClassVar[str]
    title: ClassVar[str]
    data: ClassVar[str]

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
