"""MME: two questions a picture, answered by yes or no; official folders, official reading of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.errors import DataError
from cwdpo.evaluation.benchmarks.questions import Benchmark, Question, Scored, share_right, yes_no_question

__all__ = ["MME", "read_mme"]

_TASKS = {
    **dict.fromkeys(("existence", "count", "position", "color", "posters", "celebrity", "scene"), "perception"),
    **dict.fromkeys(("landmark", "artwork", "OCR"), "perception"),
    **dict.fromkeys(("commonsense_reasoning", "numerical_calculation", "text_translation"), "cognition"),
    "code_reasoning": "cognition",
}
_PICTURES = (".jpg", ".png", ".jpeg")


class MME(Benchmark):
    """MME (Fu et al., 2023): 14 tasks; a task's score is accuracy plus that of pictures with both answers right."""

    name: ClassVar[str] = "mme"
    title: ClassVar[str] = "MME"
    data: ClassVar[str] = "the folder MME_Benchmark_release, with a folder a task (existence, count, …)"
    published: ClassVar[str] = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
    suites: ClassVar[tuple[str, ...]] = ("hallucination",)

    def read(self, path: Path) -> list[Question]:
        """Read a folder a task: texts beside their pictures, or in questions_answers_YN beside images."""
        questions: list[Question] = []
        for task in (name for name in _TASKS if (path / name).is_dir()):
            texts = sorted((path / task / "questions_answers_YN").glob("*.txt")) or sorted((path / task).glob("*.txt"))
            for text in texts:
                questions += self._of_picture(path / task, task, text)
        if not questions:
            raise self.missing(path / "existence")
        return questions

    def _of_picture(self, folder: Path, task: str, text: Path) -> list[Question]:
        lines = [line.split("\t") for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(lines) != 2 or any(len(line) != 2 or line[1].strip().lower() not in ("yes", "no") for line in lines):
            raise DataError(f"{text}: must hold two lines `question<tab>Yes or No`; give MME's official files")
        names = [text.stem + ending for ending in _PICTURES]
        name = next((n for n in names for part in ("", "images") if (folder / part / n).is_file()), names[0])
        image = self.picture(folder, name, "images")
        return [
            yes_no_question(
                f"{task}/{text.stem}/{i}",
                asked,
                [image],
                gold.strip().lower(),
                category=task,
                where=f"{text}:{i}",
                picture=f"{task}/{text.stem}",
            )
            for i, (asked, gold) in enumerate(lines, 1)
        ]

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Score by MME's rules; `perception` and `cognition` are shares of the 2,000 and 800 points of all tasks."""
        rows: list[dict[str, Any]] = []
        for q, answer in zip(questions, answers, strict=True):
            read = read_mme(answer)
            row = {"id": q.id, "category": q.category, **q.facts, "answer": answer, "read": read}
            rows.append({**row, "right": read in q.gold})
        tasks = {name: _scores([r for r in rows if r["category"] == name]) for name in _TASKS}
        tasks = {name: part for name, part in tasks.items() if part["questions"]}
        whole = _scores(rows)
        figures: dict[str, float | None] = {name: whole[name] for name in ("accuracy", "accuracy_plus")}
        for side in ("perception", "cognition"):
            points = [part["score"] for name, part in tasks.items() if _TASKS[name] == side]
            figures[side] = sum(points) / (200 * len(points)) if points else None
        return Scored(
            questions=len(rows),
            figures={**figures, "unreadable": sum(r["read"] is None for r in rows) / max(1, len(rows))},
            matching="official: yes or no within the first four characters, else wrong",
            categories=tasks,
            rows=rows,
        )


def _scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return accuracy, the share of pictures with all answers right, and their sum in points."""
    pictures: dict[str, bool] = {}
    for row in rows:
        pictures[row["picture"]] = pictures.get(row["picture"], True) and row["right"]
    accuracy, plus = share_right(rows) or 0.0, sum(pictures.values()) / max(1, len(pictures))
    return {"questions": len(rows), "accuracy": accuracy, "accuracy_plus": plus, "score": 100 * (accuracy + plus)}


def read_mme(answer: str) -> str | None:
    """Return `yes` or `no` where it stands within the first four characters, else None."""
    start = answer.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), None)
