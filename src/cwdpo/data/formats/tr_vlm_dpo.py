"""TR-VLM-DPO: preferences in Turkish."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from cwdpo.data.formats.trl import Trl

__all__ = ["TrVlmDpo"]


class TrVlmDpo(Trl):
    """TR-VLM-DPO: questions about images in Turkish, with two answers, in TRL's columns."""

    name: ClassVar[str] = "tr_vlm_dpo"
    hub: ClassVar[tuple[str, ...]] = ("ucsahin/TR-VLM-DPO",)
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "the prompt",
        "image": "the image",
        "chosen": "the chosen answer",
        "rejected": "the rejected answer",
    }

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> Collection[str]:
        """Return none: by its columns it is TRL's, which are read the same way."""
        return ()
