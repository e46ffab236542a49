"""Our own rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from cwdpo.data.own_rows import read_native
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_format import Format, columns_of
from cwdpo.data.schema import PromptGroup

__all__ = ["Ours"]


class Ours(Format):
    """Our own rows: a prompt, its images, and any number of answers with their source and difficulty."""

    name: ClassVar[str] = "cwdpo"
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "text, or turns",
        "images, image": "the images, in the order of their places in the prompt",
        "chosen": "the chosen answer",
        "rejected": "a rejected answer, or a list of them",
        "negatives": "rejected answers with `text`, `source`, `difficulty`",
        "responses": "answers with `text`, `role`, `source`, `difficulty`",
        "answers": "answers with `text` and `rating`, of which `data.pairs` makes pairs",
        "references": "gold answers that metrics compare with",
        "facts": "what else is known of the row",
        "id": "the row's id",
    }

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> Collection[str]:
        """Return the columns: what no other format has, or a prompt with a chosen answer and a list of others."""
        there, rejected, rated = columns_of(row), row.get("rejected"), row.get("answers")
        ours = there & {"responses", "negatives", "references", "facts"}
        if isinstance(rated, list) and rated and all(isinstance(item, dict) and "rating" in item for item in rated):
            ours.add("answers")
        listed = isinstance(rejected, list) and bool(rejected) and all(isinstance(item, str) for item in rejected)
        if ours or (listed and "chosen" in there) or ({"prompt", "chosen"} <= there and rejected is None):
            return ours | there & {"prompt", "chosen", "rejected"}
        return ()

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the group of a row."""
        return read_native(row, context)
