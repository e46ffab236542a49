"""Conversations in every spelling, turned into chat-template messages with typed content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.data.row_values import RowError, as_list, as_mapping, as_text, kind_of

__all__ = [
    "IMAGE_TAG",
    "ROLES",
    "picture_values",
    "place_images",
    "read_answer",
    "read_turns",
    "refuse_tags",
    "refuse_untrained",
    "shared_turns",
    "tagged_parts",
]

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

_UNTRAINED = ("tools", "functions", "tool_choice", "documents", "chat_template_kwargs", "objects")
"""Columns that other trainers hand to the chat template, or write into the text."""

_NOTES = {"id", "index", "turn", "timestamp", "created_at", "date", "lang", "language", "model", "score", "rating"} | {
    "source",
    "metadata",
    "meta",
}
"""Keys of a turn that no template writes."""

_EMPTY = (None, "", "[]", "{}", "null", False)


def read_turns(value: Any, what: str, *, tags: Mapping[str, str] | None = None) -> list[Message]:
    """Return a conversation with every content as typed parts.

    Text content is cut at `<image>` tags; content that is already typed is taken as it is, tags in it being text. An
    image part keeps what it says of its image, under `image`, until `place_images`.

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
    placed = [{**turn, "content": [_without_value(part) for part in turn["content"]]} for turn in turns]
    if parts == 0 and images:
        first = next(turn for turn in placed if turn["role"] == "user")
        first["content"] = [*({"type": "image"} for _ in range(images)), *first["content"]]
    elif parts != images:
        raise RowError("image count mismatch", f"{parts} image tags or parts in the prompt, {images} images in the row")
    if not any(_says_something(part) for turn in placed if turn["role"] != "system" for part in turn["content"]):
        raise RowError("empty prompt", "neither text nor an image in it")
    return tuple(placed)


def picture_values(turns: Sequence[Message]) -> list[Any]:
    """Return what image parts say of their images, in order: a path, an address, bytes, a picture."""
    return [part["image"] for turn in turns for part in turn["content"] if "image" in part]


def shared_turns(one: Sequence[Message], other: Sequence[Message], what: str) -> int:
    """Return how many turns two conversations begin with in common.

    Args:
        one: A conversation.
        other: Another, which may leave out what its images are.
        what: What is compared, for errors.

    Raises:
        RowError: They are the same but for their images.
    """
    count = 0
    for left, right in zip(one, other, strict=False):
        if left["role"] != right["role"] or _without_values(left) != _without_values(right):
            break
        for a, b in zip(left["content"], right["content"], strict=True):
            if "image" in a and "image" in b and a["image"] != b["image"]:
                raise two_pictures(what)
        count += 1
    return count


def two_pictures(what: str) -> RowError:
    """Return the error of a row whose answers are about different images."""
    return RowError("two pictures", f"{what}: the answers of a row must all be about the same images")


def _without_value(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "image"}


def _without_values(turn: Message) -> list[dict[str, Any]]:
    return [_without_value(part) for part in turn["content"]]


def refuse_untrained(row: Mapping[str, Any], *others: str) -> None:
    """Refuse a row with a column that belongs to its prompt and would not be trained on.

    Args:
        row: The row.
        *others: Names that such columns have in this file, beside the usual ones.

    Raises:
        RowError: The column.
    """
    for name in (*_UNTRAINED, *others):
        if not _is_empty(row.get(name)):
            raise _untrained(name)


def _is_empty(value: Any) -> bool:
    return value in _EMPTY if isinstance(value, (str, bool, type(None))) else not value and value != 0


def _untrained(what: str) -> RowError:
    return RowError(
        "field that is not trained on", f"{what} would not reach the model; write it into the text, or drop it"
    )


def _says_something(part: Mapping[str, str]) -> bool:
    return part["type"] == "image" or bool(part["text"].strip())


def _turn(value: Any, what: str, tags: Mapping[str, str]) -> Message:
    turn = as_mapping(value, what)
    role_key, content_key = ("role", "content") if "role" in turn else ("from", "value")
    name = as_text(turn.get(role_key), f"{what}.{role_key}")
    if name not in tags:
        raise RowError("unknown role", f"{what}.{role_key} = {name!r}; known: {', '.join(tags)}")
    for key, value in turn.items():
        if key == "loss" or key == "weight":
            if value is not None and not value:
                raise _untrained(f"{what} with {key} = {value!r}")
        elif key not in (role_key, content_key) and key not in _NOTES and not _is_empty(value):
            raise _untrained(f"{what}.{key}")
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
        kind = part.get("type") or next((k for k in ("text", "image", "image_url") if part.get(k) is not None), None)
        if kind not in _PARTS:
            raise RowError("unknown kind of part", f"{what}[{i}].type = {kind!r}; known: {', '.join(_PARTS)}")
        for key, content in part.items():
            if key not in _PARTS[kind] and not _is_empty(content):
                raise _untrained(f"{what}[{i}].{key}")
        if kind == "text":
            parts.append({"type": "text", "text": as_text(part.get("text"), f"{what}[{i}].text")})
        else:
            parts.append({"type": "image", **_image_of(part)})
    return parts


_PARTS = {
    "text": ("type", "text"),
    "image": ("type", "image", "path", "url", "base64", "bytes", "detail"),
    "image_url": ("type", "image_url", "detail"),
}
"""Kinds of parts, and the keys that each may have."""


def _image_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a part says of its image: TRL's `image`, OpenAI's `image_url`, or one of transformers' keys."""
    value = next((part[key] for key in ("image", "image_url", "url", "base64") if part.get(key) is not None), None)
    if isinstance(value, Mapping) and isinstance(value.get("url"), str):
        value = value["url"]
    if value is None and (part.get("bytes") is not None or part.get("path") is not None):
        value = {"bytes": part.get("bytes"), "path": part.get("path")}
    return {} if value is None else {"image": value}


def refuse_tags(text: str, what: str) -> str:
    """Return an answer of a format that knows `<image>` tags, which may stand in prompts only."""
    if IMAGE_TAG in text:
        raise RowError("image in an answer", f"{what} has an {IMAGE_TAG} tag; only prompts may hold images")
    return text
