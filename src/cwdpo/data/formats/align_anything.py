"""Align-Anything: preferences of text and image to text (arXiv:2412.15838)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format
from cwdpo.data.row_values import RowError

__all__ = ["AlignAnything"]


class AlignAnything(Format):
    """Align-Anything (text-image-to-text): two answers, and which one is better overall."""

    name: ClassVar[str] = "align_anything"
    hub: ClassVar[tuple[str, ...]] = ("PKU-Alignment/align-anything",)
    columns: ClassVar[Mapping[str, str]] = {
        "question": "the prompt",
        "image": "the image",
        "response_1, response_2": "the answers",
        "overall_response": "1 or 2: the chosen one; a row with another value is refused",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("question", "response_1", "response_2", "overall_response"))

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours."""
        better = str(row["overall_response"])
        if better not in ("1", "2"):
            raise RowError("no preference", f"overall_response = {row['overall_response']!r}; must be 1 or 2")
        answers = {"chosen": row[f"response_{better}"], "rejected": row[f"response_{3 - int(better)}"]}
        return {"prompt": row["question"], "image": row["image"], **answers}
