"""SPA-VL: safety preferences (arXiv:2406.12030)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format

__all__ = ["SpaVl"]


class SpaVl(Format):
    """SPA-VL: harmful and harmless questions about images, with a safer and a less safe answer."""

    name: ClassVar[str] = "spa_vl"
    hub: ClassVar[tuple[str, ...]] = ("sqrti/SPA-VL",)
    rows: ClassVar[str] = "93,258"
    columns: ClassVar[Mapping[str, str]] = {
        "question": "the prompt",
        "image": "the image",
        "chosen": "the chosen answer",
        "rejected": "the rejected answer",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("question", "image", "chosen", "rejected", "image_name"))
    without: ClassVar[frozenset[str]] = frozenset(("prompt",))

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours."""
        return {"prompt": row["question"], "image": row["image"], "chosen": row["chosen"], "rejected": row["rejected"]}
