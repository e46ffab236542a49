"""OpenAI's preference rows, which Fireworks takes too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.messages import read_answer, read_turns
from cwdpo.data.row_format import Format
from cwdpo.data.row_values import as_mapping, require_column

__all__ = ["OpenAi"]


class OpenAi(Format):
    """OpenAI's rows for preference finetuning: messages with `image_url` parts, and two outputs."""

    name: ClassVar[str] = "openai"
    columns: ClassVar[Mapping[str, str]] = {
        "input": "`messages` are the prompt; images are `image_url` parts: addresses, `data:` URIs or paths",
        "preferred_output": "the chosen answer, one turn",
        "non_preferred_output": "the rejected answer, one turn",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("input", "preferred_output", "non_preferred_output"))

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours."""
        given = as_mapping(row["input"], "input")
        sides = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
        answers = {role: read_answer(read_turns(row[name], name), name) for role, name in sides.items()}
        hidden = {key: value for key, value in given.items() if key not in ("messages", "parallel_tool_calls")}
        return {**hidden, "prompt": require_column(given, "messages"), **answers}
