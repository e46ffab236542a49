"""ms-swift's preference rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.messages import Message, read_answer, read_turns, refuse_tags, shared_turns
from cwdpo.data.row_context import RowContext, build_group, read_images
from cwdpo.data.row_format import Format
from cwdpo.data.row_values import RowError, as_list, as_text, require_column, require_good
from cwdpo.data.schema import REJECTED, PromptGroup, Response

__all__ = ["Swift"]


class Swift(Format):
    """ms-swift's rows: a conversation that ends with the chosen answer, and what is rejected beside it."""

    name: ClassVar[str] = "swift"
    columns: ClassVar[Mapping[str, str]] = {
        "messages": "the prompt, and as its last turn the chosen answer",
        "rejected_response": "a rejected answer: text, a list of texts (several answers), or turns",
        "rejected_messages": "the whole other conversation",
        "images, image": "the images, in the order of their `<image>` tags",
        "system": "the system turn",
        "label": "a row whose answer is marked as bad is refused",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("messages",))
    without: ClassVar[frozenset[str]] = frozenset(("chosen",))

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the group of a row; without a rejected answer it has a chosen one only."""
        return _read(row, context)


def _read(row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
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
