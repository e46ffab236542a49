"""RLAIF-V: answers that open models judged for each other, sentence by sentence (arXiv:2405.17220)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format

__all__ = ["RlaifV"]


class RlaifV(Format):
    """RLAIF-V: questions about images with a more and a less faithful answer."""

    name: ClassVar[str] = "rlaif_v"
    hub: ClassVar[tuple[str, ...]] = ("openbmb/RLAIF-V-Dataset",)
    rows: ClassVar[str] = "83,132"
    licence: ClassVar[str] = "CC-BY-NC-4.0"
    columns: ClassVar[Mapping[str, str]] = {
        "question": "the prompt",
        "image": "the image",
        "chosen": "the chosen answer",
        "rejected": "the rejected answer",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("question", "image", "chosen", "rejected", "ds_name"))
    without: ClassVar[frozenset[str]] = frozenset(("prompt",))

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours; `idx` counts within a source, so that it is no id."""
        return {"prompt": row["question"], "image": row["image"], "chosen": row["chosen"], "rejected": row["rejected"]}
