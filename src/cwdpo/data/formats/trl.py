"""TRL's preference rows: `images`, `prompt`, `chosen`, `rejected`, plain text or conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.data.messages import Message, read_answer, read_turns, tagged_parts
from cwdpo.data.row_context import RowContext, build_group, read_image, read_images
from cwdpo.data.row_values import RowError, as_text, require_column
from cwdpo.data.schema import CHOSEN, REJECTED, ImageRef, PromptGroup, Response

__all__ = ["read_trl"]


def read_trl(row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
    """Return the group of one row.

    A plain text prompt becomes a user turn. In conversations `chosen` and `rejected` are the assistant turn, or the
    whole conversation: what they share with `prompt`, or with each other where there is no `prompt`, is the prompt.
    """
    sides = {role: require_column(row, role) for role in (CHOSEN, REJECTED)}
    prompt = row.get("prompt")
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
    images = read_images(row, context, ("images", "image")) or _images_in_messages(prompt or sides[CHOSEN], context)
    return [build_group(context, turns, images, responses, name=row.get("id"))]


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
    most = min(len(chosen), len(rejected)) - 1
    count = next((i for i in range(most) if chosen[i] != rejected[i]), max(most, 0))
    return list(chosen[:count])


def _without_start(answer: Sequence[Message], prompt: Sequence[Message]) -> Sequence[Message]:
    whole = len(answer) > len(prompt) and list(answer[: len(prompt)]) == list(prompt)
    return answer[len(prompt) :] if whole else answer


def _images_in_messages(value: Any, context: RowContext) -> tuple[ImageRef, ...]:
    """Return images that stand in the messages themselves, as `{"type": "image", "image": …}`."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return ()
    contents = [turn.get("content") for turn in value if isinstance(turn, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    payloads = [part["image"] for part in parts if isinstance(part, Mapping) and part.get("image") is not None]
    return tuple(read_image(payload, context, None, None) for payload in payloads)
