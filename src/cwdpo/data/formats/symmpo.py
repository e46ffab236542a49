"""SymMPO: pairs of images that contrast, each with its answers (arXiv:2506.11712)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format

__all__ = ["SymMpo"]


class SymMpo(Format):
    """SymMPO: one question about two contrasting images, each with a right and a wrong answer."""

    name: ClassVar[str] = "symmpo"
    columns: ClassVar[Mapping[str, str]] = {
        "question": "the prompt of both pairs",
        "image_1, image_2": "the image of each pair",
        "resp_1_w, resp_1_l": "the chosen and the rejected answer about the first image",
        "resp_2_w, resp_2_l": "the same about the second",
    }
    needs: ClassVar[frozenset[str]] = frozenset(
        ("question", "image_1", "image_2", "resp_1_w", "resp_1_l", "resp_2_w", "resp_2_l")
    )

    @staticmethod
    def read(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return two rows of ours."""
        return [
            {
                "prompt": row["question"],
                "image": row[f"image_{i}"],
                "chosen": row[f"resp_{i}_w"],
                "rejected": row[f"resp_{i}_l"],
            }
            for i in (1, 2)
        ]
