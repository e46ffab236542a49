"""ms-swift's preference rows: `messages` that end with the chosen answer, `rejected_response`, `images`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cwdpo.data.messages import Message, read_answer, read_turns, refuse_tags, shared_turns
from cwdpo.data.row_context import RowContext, build_group, read_images
from cwdpo.data.row_values import RowError, as_list, as_text, require_column, require_good
from cwdpo.data.schema import REJECTED, PromptGroup, Response

__all__ = ["read_swift"]


def read_swift(row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
    """Return the group of one row.

    `rejected_response` is text, a list of texts (several rejected answers) or a list of turns; `rejected_messages` is
    the whole other conversation. A row without either has a chosen answer only.
    """
    require_good(row, "label")
    turns = read_turns(require_column(row, "messages"), "messages")
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError("no chosen answer", "the last turn of messages must be the assistant's")
    prompt, last = turns[:-1], turns[-1:]
    if isinstance(row.get("system"), str) and row["system"] and (not prompt or prompt[0]["role"] != "system"):
        prompt = [{"role": "system", "content": [{"type": "text", "text": as_text(row["system"], "system")}]}, *prompt]
    images = read_images(row, context, ("images", "image"))
    responses = [Response(refuse_tags(read_answer(last, "messages"), "messages"))]
    responses += [Response(refuse_tags(text, "rejected"), REJECTED) for text in _rejected(row, turns[:-1])]
    return [build_group(context, prompt, images, responses, name=row.get("id"))]


def _rejected(row: Mapping[str, Any], prompt: list[Message]) -> list[str]:
    value = row.get("rejected_response")
    if isinstance(value, str):
        return [as_text(value, "rejected_response")]
    if value is not None:
        values = as_list(value, "rejected_response")
        if values and all(isinstance(v, Mapping) for v in values):
            return [read_answer(read_turns(values, "rejected_response"), "rejected_response")]
        return [as_text(v, "rejected_response") for v in values]
    if row.get("rejected_messages") is None:
        return []
    turns = read_turns(row["rejected_messages"], "rejected_messages")
    if len(turns) - 1 != len(prompt) or shared_turns(turns[:-1], prompt, "rejected_messages") < len(prompt):
        raise RowError("two prompts", "rejected_messages asks something else than messages; both must share the prompt")
    return [read_answer(turns[-1:], "rejected_messages")]
