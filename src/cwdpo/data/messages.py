"""Conversations in every spelling, turned into chat-template messages with typed content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.data.row_values import RowError, as_list, as_mapping, as_text, kind_of

__all__ = ["IMAGE_TAG", "ROLES", "place_images", "read_answer", "read_turns", "refuse_tags", "tagged_parts"]

IMAGE_TAG = "<image>"
"""What LLaMA-Factory and ms-swift write in the text where an image goes."""

ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Names of roles that are understood, and the role of a chat template that each one is."""

Message = dict[str, Any]


def read_turns(value: Any, what: str, *, tags: Mapping[str, str] | None = None) -> list[Message]:
    """Return a conversation with every content as typed parts.

    Text content is cut at `<image>` tags; content that is already typed is taken as it is, tags in it being text.

    Args:
        value: List of `{role, content}` or `{from, value}`, as the row has it.
        what: Name of the column, for errors.
        tags: Names of roles in this file; `ROLES` where None.

    Raises:
        RowError: Not such a list, an unknown role or kind of part.
    """
    return [_turn(turn, f"{what}[{i}]", tags or ROLES) for i, turn in enumerate(as_list(value, what))]


def tagged_parts(text: str) -> list[dict[str, str]]:
    """Return text cut at its `<image>` tags, as typed parts; every other character is kept."""
    parts: list[dict[str, str]] = []
    for piece in re.split(f"({IMAGE_TAG})", text):
        if piece == IMAGE_TAG:
            parts.append({"type": "image"})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def read_answer(turns: Sequence[Message], what: str) -> str:
    """Return the text of the one assistant turn that an answer is.

    Raises:
        RowError: Several turns, another role, or an image in it.
    """
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns) or "no turn"
        raise RowError("answer is not one assistant turn", f"{what} has {roles} after the prompt")
    if any(part["type"] != "text" for part in turns[0]["content"]):
        raise RowError("image in an answer", f"{what} has an image part; only prompts may hold images")
    return "".join(part["text"] for part in turns[0]["content"])


def place_images(turns: Sequence[Message], images: int) -> tuple[Message, ...]:
    """Return the prompt with as many image parts as there are images.

    Where the prompt names no place for them, they go first in the first user turn.

    Raises:
        RowError: The prompt is empty, ends with an answer, or has another number of image parts.
    """
    if not any(turn["role"] == "user" for turn in turns):
        raise RowError("empty prompt", "no user turn in the prompt")
    if turns[-1]["role"] not in {"user", "tool"}:
        raise RowError("prompt ends with an answer", f"its last turn is {turns[-1]['role']}; it must be user")
    parts = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    placed = [dict(turn) for turn in turns]
    if parts == 0 and images:
        first = next(turn for turn in placed if turn["role"] == "user")
        first["content"] = [*({"type": "image"} for _ in range(images)), *first["content"]]
    elif parts != images:
        raise RowError("image count mismatch", f"{parts} image tags or parts in the prompt, {images} images in the row")
    if not any(_says_something(part) for turn in placed if turn["role"] != "system" for part in turn["content"]):
        raise RowError("empty prompt", "neither text nor an image in it")
    return tuple(placed)


def _says_something(part: Mapping[str, str]) -> bool:
    return part["type"] == "image" or bool(part["text"].strip())


def _turn(value: Any, what: str, tags: Mapping[str, str]) -> Message:
    turn = as_mapping(value, what)
    role_key, content_key = ("role", "content") if "role" in turn else ("from", "value")
    name = as_text(turn.get(role_key), f"{what}.{role_key}")
    if name not in tags:
        raise RowError("unknown role", f"{what}.{role_key} = {name!r}; known: {', '.join(tags)}")
    if turn.get("tool_calls"):
        raise RowError("tool calls", f"{what} has tool calls, which are not supported")
    content = turn.get(content_key)
    parts = (
        tagged_parts(as_text(content, what)) if isinstance(content, str) else _typed(content, f"{what}.{content_key}")
    )
    return {"role": tags[name], "content": parts}


def _typed(content: Any, what: str) -> list[Message]:
    if isinstance(content, Mapping) or content is None:
        raise RowError("wrong type", f"{what} must be text or a list of parts, not {kind_of(content)}")
    parts: list[Message] = []
    for i, value in enumerate(as_list(content, what)):
        part = as_mapping(value, f"{what}[{i}]")
        kind = part.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": as_text(part.get("text"), f"{what}[{i}].text")})
        elif kind == "image":
            parts.append({"type": "image"})
        else:
            raise RowError("unknown kind of part", f"{what}[{i}].type = {kind!r}; known: text, image")
    return parts


def refuse_tags(text: str, what: str) -> str:
    """Return an answer of a format that knows `<image>` tags, which may stand in prompts only."""
    if IMAGE_TAG in text:
        raise RowError("image in an answer", f"{what} has an {IMAGE_TAG} tag; only prompts may hold images")
    return text
