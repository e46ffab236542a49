"""POVID: hallucinations injected into right answers (arXiv:2402.11411)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format
from cwdpo.data.row_values import RowError, as_list

__all__ = ["Povid"]


class Povid(Format):
    """POVID: LLaVA conversations, and the same with hallucinated answers."""

    name: ClassVar[str] = "povid"
    hub: ClassVar[tuple[str, ...]] = ("YiyangAiLab/POVID_preference_data_for_VLLMs",)
    licence: ClassVar[str] = "CC-BY-4.0"
    columns: ClassVar[Mapping[str, str]] = {
        "conversations": "the turns before an answer are the prompt; the answer is the chosen one",
        "rejected_conversations": "the same turn here is the rejected answer; every answer that differs makes a pair",
        "image": "the image",
        "id": "the row's id",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("conversations", "rejected_conversations"))
    without: ClassVar[frozenset[str]] = frozenset(("chosen", "rejected"))

    @staticmethod
    def read(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield a row of ours for every answer that differs."""
        good, bad = (as_list(row[name], name) for name in ("conversations", "rejected_conversations"))
        differ = [i for i, (one, other) in enumerate(zip(good, bad, strict=True)) if one["value"] != other["value"]]
        if not differ or any(good[i]["from"] != "gpt" for i in differ):
            raise RowError("no pair", "the two conversations must differ in answers (from gpt), and in nothing else")
        shared = {key: row[key] for key in ("id", "image") if row.get(key)}
        for i in differ:
            yield {**shared, "prompt": good[:i], "chosen": good[i]["value"], "rejected": bad[i]["value"]}
