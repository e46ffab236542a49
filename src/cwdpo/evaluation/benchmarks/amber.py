"""AMBER, its discriminative part: existence, attributes and relations, by yes or no; official files and scores."""

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

__all__ = ["AMBER"]

_KINDS = {"discriminative-hallucination": "existence", "discriminative-relation": "relation"}


class AMBER(Benchmark):
    """AMBER (Wang et al., 2023), discriminative: precision and recall are of the answer no, as in its own code."""

    name: ClassVar[str] = "amber"
    title: ClassVar[str] = "AMBER (discriminative)"
    data: ClassVar[str] = (
        "AMBER's folder data, with annotations.json, query/query_discriminative.json and the pictures in image/"
    )
    published: ClassVar[str] = "https://github.com/junyangwang0410/AMBER"
    suites: ClassVar[tuple[str, ...]] = ("hallucination",)

    ending: str = BY_WORD
    """Said after each question."""

    def read(self, path: Path) -> list[Question]:
        """Read queries and annotations."""
        queries, annotations = path / "query" / "query_discriminative.json", path / "annotations.json"
        for file in (queries, annotations):
            if not file.is_file():
                raise self.missing(file)
        known = {row.get("id"): row for row in json_rows(annotations)}
        return [self._question(path, queries, i, row, known) for i, row in enumerate(json_rows(queries), 1)]

    def _question(self, path: Path, file: Path, number: int, row: dict[str, Any], known: dict[Any, Any]) -> Question:
        where, gold = f"{file}:{number}", known.get(row.get("id"), {})
        if gold.get("truth") not in ("yes", "no") or not {"image", "query"} <= row.keys():
            raise DataError(
                f"{where}: not a question of AMBER with an answer in annotations.json; give the official files"
            )
        kind = str(gold.get("type"))
        category = _KINDS.get(kind) or ("attribute" if kind.startswith("discriminative-attribute-") else "relation")
        image = self.picture(path, str(row["image"]), "image")
        text = f"{row['query']}\n{self.ending}".strip()
        return yes_no_question(str(row["id"]), text, [image], gold["truth"], category=category, where=where)

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Score by AMBER's rules; an answer that begins with neither yes nor no is wrong."""
        rows: list[dict[str, Any]] = []
        for q, answer in zip(questions, answers, strict=True):
            read, gold = first_word(answer), q.gold[0]
            row = {"id": q.id, "category": q.category, "answer": answer, "read": read, "gold": gold}
            rows.append({**row, "right": read == gold})
        kinds = {
            name: [row for row in rows if row["category"] == name] for name in sorted({q.category for q in questions})
        }
        return Scored(
            questions=len(rows),
            figures={
                **yes_no_figures(rows, "no"),
                "unreadable": sum(r["read"] is None for r in rows) / max(1, len(rows)),
            },
            matching="the first word, yes or no, else wrong; precision, recall and F1 of no",
            categories={name: {"questions": len(part), **yes_no_figures(part, "no")} for name, part in kinds.items()},
            rows=rows,
        )
