"""LLaVA-RLHF: which of two answers people prefer (arXiv:2309.14525)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format
from cwdpo.data.row_values import RowError

__all__ = ["LlavaRlhf"]


class LlavaRlhf(Format):
    """LLaVA-RLHF: a conversation, two answers, and which one is better."""

    name: ClassVar[str] = "llava_rlhf"
    hub: ClassVar[tuple[str, ...]] = ("zhiqings/LLaVA-Human-Preference-10K",)
    rows: ClassVar[str] = "about 10,000"
    columns: ClassVar[Mapping[str, str]] = {
        "conversations": "the prompt",
        "image": "the image",
        "output_1, output_2": "the answers",
        "preference": "1 or 2: the chosen one; a row with another value is refused",
        "hallucination": "not read",
        "id": "the row's id",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("conversations", "output_1", "output_2", "preference"))

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours."""
        if row["preference"] not in (1, 2):
            raise RowError("no preference", f"preference = {row['preference']!r}; must be 1 or 2")
        better, worse = ("output_1", "output_2") if row["preference"] == 1 else ("output_2", "output_1")
        answers = {"chosen": row[better]["value"], "rejected": row[worse]["value"]}
        return {"id": row.get("id"), "image": row.get("image"), "prompt": row["conversations"], **answers}
