"""MM-RLHF: what people prefer among answers about images and videos (arXiv:2502.10391)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from cwdpo.data.formats.trl import Trl

__all__ = ["MmRlhf"]


class MmRlhf(Trl):
    """MM-RLHF's `dpo_pairs.jsonl`: TRL's columns, and rows about videos, which are refused."""

    name: ClassVar[str] = "mm_rlhf"
    hub: ClassVar[tuple[str, ...]] = ("yifanzhang114/MM-RLHF",)
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "the prompt",
        "image": "the image",
        "video": "a row that has one is refused; `data.on_bad_row: skip` with `data.max_bad_share` sets these aside",
        "chosen": "the chosen answer",
        "rejected": "the rejected answer",
    }

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> Collection[str]:
        """Return none: by its columns it is TRL's, which are read the same way."""
        return ()
