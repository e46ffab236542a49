"""RLHF-V: answers that people corrected (arXiv:2312.00849)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format, columns_of
from cwdpo.data.row_values import RowError, as_mapping
from cwdpo.data.tables.text_tables import parse_json

__all__ = ["RlhfV"]


class RlhfV(Format):
    """RLHF-V: questions about images, an answer of a model and the same with its hallucinations corrected."""

    name: ClassVar[str] = "rlhf_v"
    hub: ClassVar[tuple[str, ...]] = ("openbmb/RLHF-V-Dataset",)
    rows: ClassVar[str] = "5,733"
    licence: ClassVar[str] = "CC-BY-NC-4.0"
    columns: ClassVar[Mapping[str, str]] = {
        "text": "JSON with `question`, the prompt, `chosen` and `rejected`, the answers",
        "image": "the image",
    }

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> Collection[str]:
        """Return `text`, where it looks like an object of JSON and the answers are nowhere else."""
        text, there = row.get("text"), columns_of(row)
        packed = isinstance(text, str) and text.lstrip().startswith("{") and "chosen" not in there
        return there & {"text", "image"} if packed else ()

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours."""
        try:
            text = as_mapping(parse_json(row["text"]), "text")
        except (ValueError, RecursionError) as error:
            raise error if isinstance(error, RowError) else RowError("not JSON", "of the column text") from None
        for name in ("question", "chosen", "rejected"):
            if name not in text:
                raise RowError("missing column", f"'{name}' is not in the JSON of the column text")
        images = {key: row[key] for key in ("image", "images") if row.get(key)}
        return {**images, "prompt": text["question"], "chosen": text["chosen"], "rejected": text["rejected"]}
