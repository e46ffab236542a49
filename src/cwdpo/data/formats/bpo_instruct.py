"""BPO: negatives by weakened images and by injected errors (arXiv:2403.08730)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format

__all__ = ["Bpo"]


class Bpo(Format):
    """BPO: the reference answer and scored negatives of two kinds."""

    name: ClassVar[str] = "bpo_instruct"
    hub: ClassVar[tuple[str, ...]] = ("renjiepi/BPO_Instruct",)
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "the prompt, with its `<image>`",
        "image": "the image",
        "completions": "the answers (`response`), of which `data.pairs` makes pairs by `score`",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("prompt", "image", "completions"))

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> frozenset[str]:
        """Return the columns, where completions have scores."""
        made = row.get("completions")
        scored = isinstance(made, list) and bool(made) and all(isinstance(one, dict) and "score" in one for one in made)
        return cls.needs | {"completions[].score"} if scored and super().fits(row) else frozenset()

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours with rated answers."""
        answers = [{"text": one["response"], "rating": one["score"]} for one in row["completions"]]
        return {"prompt": row["prompt"], "image": row["image"], "answers": answers}
