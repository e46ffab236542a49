"""HallusionBench: yes/no questions on pictures and altered ones; official file, answers read without a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.errors import DataError
from cwdpo.evaluation.benchmarks.questions import (
    Benchmark,
    Question,
    Scored,
    by_category,
    first_word,
    json_rows,
    share_right,
    yes_no_question,
)

__all__ = ["HallusionBench"]

_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input", "question", "gt_answer")


class HallusionBench(Benchmark):
    """HallusionBench (Guan et al., 2024): right answers, questions right on all figures, figures with all right."""

    name: ClassVar[str] = "hallusionbench"
    title: ClassVar[str] = "HallusionBench"
    data: ClassVar[str] = "the folder with HallusionBench.json and hallusion_bench/ (VD/…, VS/…) of pictures"
    published: ClassVar[str] = "https://github.com/tianyi-lab/HallusionBench"
    suites: ClassVar[tuple[str, ...]] = ("hallucination",)

    ending: str = "Answer yes or no."
    """Said after each question."""

    def read(self, path: Path) -> list[Question]:
        """Read the official JSON; a question without a picture is asked without one."""
        file = path if path.is_file() else path / "HallusionBench.json"
        if not file.is_file():
            raise self.missing(file)
        return [self._question(file, i, row) for i, row in enumerate(json_rows(file), 1)]

    def _question(self, file: Path, number: int, row: dict[str, Any]) -> Question:
        where = f"{file}:{number}"
        if lacking := [key for key in _KEYS if key not in row]:
            raise DataError(f"{where}: not a row of HallusionBench: no {', '.join(lacking)}; give the official file")
        place = [str(row[key]) for key in ("category", "subcategory", "set_id")]
        figure, asked = str(row["figure_id"]), str(row["question_id"])
        images = []
        if str(row["visual_input"]) != "0":
            images = [self.picture(file.parent, "/".join(place[:2]) + f"/{place[2]}_{figure}.png", "hallusion_bench")]
        facts: dict[str, Any] = {"figure": "_".join([*place, figure]), "pair": "_".join([*place, asked])}
        facts["counts_as_figure"] = not (place[0] == "VS" and figure == "0")
        text, gold = f"{row['question']} {self.ending}".strip(), "yes" if str(row["gt_answer"]) == "1" else "no"
        name = "_".join([*place, figure, asked])
        return yes_no_question(name, text, images, gold, category=place[0], where=where, **facts)

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Score aAcc (`accuracy`), fAcc and qAcc; an answer that begins with neither yes nor no is wrong."""
        rows: list[dict[str, Any]] = []
        for q, answer in zip(questions, answers, strict=True):
            read = first_word(answer)
            row = {"id": q.id, "category": q.category, **q.facts, "answer": answer, "read": read}
            rows.append({**row, "right": read in q.gold})
        figures: dict[str, bool] = {}
        pairs: dict[str, bool] = {}
        for row in rows:
            pairs[row["pair"]] = pairs.get(row["pair"], True) and row["right"]
            if row["counts_as_figure"]:
                figures[row["figure"]] = figures.get(row["figure"], True) and row["right"]
        return Scored(
            questions=len(rows),
            figures={
                "accuracy": share_right(rows),
                "figure_accuracy": sum(figures.values()) / len(figures) if figures else None,
                "question_accuracy": sum(pairs.values()) / len(pairs) if pairs else None,
                "unreadable": sum(r["read"] is None for r in rows) / max(1, len(rows)),
            },
            matching="the first word, yes or no, else wrong (the official code asks GPT-4 to compare)",
            categories=by_category(rows),
            rows=rows,
        )
