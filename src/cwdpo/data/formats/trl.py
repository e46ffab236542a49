"""TRL's preference rows: `images`, `prompt`, `chosen`, `rejected`, plain text or conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.data.messages import Message, read_answer, read_turns, shared_turns, tagged_parts
from cwdpo.data.row_context import RowContext, build_group, read_images
from cwdpo.data.row_values import RowError, as_mapping, as_text, first_of, require_column
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.data.tables.text_tables import parse_json

__all__ = ["is_packed", "read_trl"]


def read_trl(row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
    """Return the group of one row.

    A plain text prompt becomes a user turn; RLAIF-V and MMPR call it `question`, RLHF-V packs the row into `text`. In
    conversations `chosen` and `rejected` are the assistant turn, or the whole conversation: what they share with
    `prompt`, or with each other where there is no `prompt`, is the prompt.
    """
    row = _unpacked(row)
    sides = {role: require_column(row, role) for role in (CHOSEN, REJECTED)}
    prompt = first_of(row, "prompt", "question", "query")
    if all(isinstance(side, str) for side in sides.values()):
        if prompt is None:
            raise RowError("missing column", "'prompt' is not in the row, and plain answers do not show where it ends")
        turns = _prompt(prompt)
        texts = {role: as_text(side, role) for role, side in sides.items()}
    else:
        answers = {role: _answer_turns(side, role) for role, side in sides.items()}
        turns = _shared_start(*answers.values()) if prompt is None else _prompt(prompt)
        texts = {role: read_answer(_without_start(answer, turns), role) for role, answer in answers.items()}
    responses = [Response(texts[CHOSEN], CHOSEN), Response(texts[REJECTED], REJECTED)]
    images = read_images(row, context, ("images", "image"))
    return [build_group(context, turns, images, responses, name=row.get("id"))]


def is_packed(row: Mapping[str, Any]) -> bool:
    """Return whether a row has its columns as JSON in `text`, as RLHF-V has."""
    text = row.get("text")
    return isinstance(text, str) and text.lstrip().startswith("{") and row.get(CHOSEN) is None


def _unpacked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if not is_packed(row):
        return row
    try:
        return {**row, **as_mapping(parse_json(row["text"]), "text")}
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, RowError) else RowError("not JSON", "of the column text") from None


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": tagged_parts(as_text(value, "prompt"))}]
    return read_turns(value, "prompt")


def _answer_turns(value: Any, what: str) -> list[Message]:
    """Return an answer as turns; text beside a conversation, and one turn that is not in a list, are taken too."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": [{"type": "text", "text": as_text(value, what)}]}]
    return read_turns([value] if isinstance(value, Mapping) else value, what)


def _shared_start(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """Return the turns that both begin with, at most all but the last of each (the answers may be equal)."""
    most = max(min(len(chosen), len(rejected)) - 1, 0)
    return list(chosen[: shared_turns(chosen[:most], rejected[:most], "chosen and rejected")])


def _without_start(answer: Sequence[Message], prompt: Sequence[Message]) -> Sequence[Message]:
    whole = len(answer) > len(prompt) and shared_turns(answer, prompt, "prompt and answers") == len(prompt)
    return answer[len(prompt) :] if whole else answer
