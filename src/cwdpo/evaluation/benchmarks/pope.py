"""POPE: is an object in the picture? Official question files, official reading of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.errors import DataError
from cwdpo.evaluation.benchmarks.questions import (
    BY_WORD,
    Benchmark,
    Question,
    Scored,
    first_word,
    json_rows,
    yes_no_figures,
    yes_no_question,
)

__all__ = ["POPE", "read_pope"]


class POPE(Benchmark):
    """POPE (Li et al., 2023): objects that are there, and random, popular and adversarial ones that are not."""

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "POPE"
    data: ClassVar[str] = (
        "a folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json (or some of them), "
        "and the pictures of COCO's val2014 in it or in its folder val2014"
    )
    published: ClassVar[str] = "https://github.com/AoiDragon/POPE (pictures: https://cocodataset.org)"
    suites: ClassVar[tuple[str, ...]] = ("hallucination",)

    ending: str = BY_WORD
    """Said after each question."""

    def read(self, path: Path) -> list[Question]:
        """Read the question files of a folder, or one of them."""
        files = [path] if path.is_file() else sorted(path.glob("*_pope_*.json"))
        if not files:
            raise self.missing(path / "coco_pope_random.json")
        return [self._question(file, i, row) for file in files for i, row in enumerate(json_rows(file), 1)]

    def _question(self, file: Path, number: int, row: dict[str, Any]) -> Question:
        where, kind = f"{file}:{number}", file.stem.rpartition("_")[2]
        if not {"image", "text", "label"} <= row.keys():
            raise DataError(f"{where}: not a row of POPE, it must have image, text and label; give the official file")
        image = self.picture(file.parent, str(row["image"]), "val2014")
        text, gold = f"{row['text']}\n{self.ending}".strip(), "no" if row["label"] == "no" else "yes"
        return yes_no_question(f"{kind}-{number}", text, [image], gold, category=kind, where=where)

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Score by POPE's rule, which reads as yes whatever does not deny; `unreadable` says neither."""
        rows: list[dict[str, Any]] = []
        for q, answer in zip(questions, answers, strict=True):
            read, gold = read_pope(answer), q.gold[0]
            row = {"id": q.id, "category": q.category, "answer": answer, "read": read, "gold": gold}
            rows.append({**row, "right": read == gold, "unreadable": read == "yes" and first_word(answer) is None})
        kinds = {
            name: [row for row in rows if row["category"] == name] for name in sorted({q.category for q in questions})
        }
        return Scored(
            questions=len(rows),
            figures={**yes_no_figures(rows), "unreadable": sum(r["unreadable"] for r in rows) / max(1, len(rows))},
            matching="official: no where the first sentence has the word no or not, else yes",
            categories={name: {"questions": len(part), **yes_no_figures(part)} for name, part in kinds.items()},
            rows=rows,
        )


def read_pope(answer: str) -> str:
    """Return what POPE's official evaluation reads: `no` if the first sentence has one of its words, else `yes`."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"
