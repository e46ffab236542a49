"""What is said to a language model and what comes back, apart from how it is sent."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from cwdpo.data.images import open_image
from cwdpo.data.schema import ImageRef
from cwdpo.errors import one_line
from cwdpo.files import text_digest
from cwdpo.recipe.endpoint_sections import WriterSection

__all__ = [
    "Conversation",
    "Reply",
    "Request",
    "UnusableAnswer",
    "guess_tokens",
    "json_request",
    "plain_text",
    "until_usable",
]

T = TypeVar("T")

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys."""
_IMAGE_TOKENS = 800
"""A guess, for the estimate."""
_IMAGE_SIDE = 768


@dataclass(frozen=True)
class Request:
    """A chat request.

    Attributes:
        settings: Fields of the request beside `messages`: model, temperature, …
        messages: The conversation; a part `{"type": "image"}` stands for the next one of `images`.
        images: Its images.
        small_images: Send them as JPEG of at most 768 pixels a side, rather than unchanged as PNG.
        expected: About how many tokens will come back.
        salt: What else the answer depends on, such as the number of the sample.
    """

    settings: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]]
    images: Sequence[ImageRef] = ()
    small_images: bool = True
    expected: int = 20
    salt: str = ""

    @cached_property
    def key(self) -> str:
        """Digest of the content, under which the answer is cached."""
        content = json.dumps([self.settings, self.messages, self.small_images], sort_keys=True)
        return text_digest(content, self.salt, *(image.digest() for image in self.images))

    @property
    def tokens(self) -> int:
        """About how many tokens are sent."""
        return guess_tokens(json.dumps(self.messages, ensure_ascii=False)) + _IMAGE_TOKENS * len(self.images)

    @property
    def most(self) -> int:
        """The most tokens that can come back."""
        return self.settings["max_tokens"] * self.settings.get("n", 1)

    def body(self) -> dict[str, Any]:
        """Return what is sent, with the images in it."""
        images, messages = iter(self.images), list[dict[str, Any]]()
        for message in self.messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [self._encoded(next(images)) if p["type"] == "image" else dict(p) for p in content]
            messages.append({**message, "content": content})
        return {**self.settings, "messages": messages}

    def _encoded(self, ref: ImageRef) -> dict[str, Any]:
        picture, buffer, kind = open_image(ref), io.BytesIO(), "jpeg" if self.small_images else "png"
        if self.small_images:
            picture.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
        picture.save(buffer, kind, **({"quality": 85} if self.small_images else {}))
        content = base64.b64encode(buffer.getvalue()).decode("ascii")
        return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{content}"}}


class UnusableAnswer(Exception):
    """An answer breaks a rule.

    Args:
        problem: Which.
        text: What it says, where that can be read.
    """

    def __init__(self, problem: str, text: str = "") -> None:
        super().__init__(problem)
        self.text = text


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: The text.
        sent: Input tokens as the server counts them, or a guess.
        received: Output tokens.
        whole: Whether the answer ended by itself.
        more: Further texts, if several were asked for.
    """

    text: str
    sent: int
    received: int
    whole: bool = True
    more: Sequence[str] = ()

    def json(self) -> dict[str, Any]:
        """Return the JSON object in the text, whatever stands around it.

        Raises:
            UnusableAnswer: There is none.
        """
        if not self.whole:
            raise UnusableAnswer("the answer was cut short")
        if (start := self.text.find("{")) < 0:
            raise UnusableAnswer("the answer holds no JSON")
        try:
            return _plain(json.JSONDecoder().raw_decode(self.text[start:])[0])
        except (ValueError, RecursionError):
            raise UnusableAnswer("the answer holds no whole JSON") from None


Conversation = Generator[Request, Reply, T]
"""Yields requests, is sent the replies, returns what it was about. It depends on the replies alone, so that it can be
resumed from cached ones."""


def until_usable(request: Request, read: Callable[[Reply], T], retries: int) -> Conversation[T]:
    """Ask until an answer can be read; say each time what was wrong.

    Raises:
        UnusableAnswer: None could, after so many retries.
    """
    while True:
        reply = yield request
        try:
            return read(reply)
        except UnusableAnswer as error:
            if not retries:
                raise UnusableAnswer(str(error), error.text or one_line(reply.text)) from None
            retries -= 1
            said = {"role": "assistant", "content": reply.text}
            answer = {"role": "user", "content": f"That cannot be used: {error}. Try again; JSON only."}
            request = replace(request, messages=[*request.messages, said, answer])


def json_request(
    settings: WriterSection,
    task: str,
    text: str,
    properties: Mapping[str, Any],
    images: Sequence[ImageRef],
    **more: Any,
) -> Request:
    """Return a request for a JSON object.

    Args:
        settings: Model, temperature, length, whether images are sent, what the server is told about JSON.
        task: What to do, for the system message.
        text: What to do it with.
        properties: JSON schema of each property of the object.
        images: Images to be seen.
        **more: Further attributes of the request.
    """
    fields: dict[str, Any] = {"model": settings.model, "temperature": settings.temperature}
    fields["max_tokens"] = settings.max_tokens
    if settings.structured == "json_schema":
        rules = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        schema = {"name": "answer", "strict": True, "schema": rules}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif settings.structured == "json_object":
        fields["response_format"] = {"type": "json_object"}
    shown = tuple(images) if settings.images else ()
    content = [*({"type": "image"} for _ in shown), {"type": "text", "text": text}] if shown else text
    messages = [{"role": "system", "content": task}, {"role": "user", "content": content}]
    return Request(fields, messages, shown, **more)


def plain_text(text: str) -> str:
    """Return a text without what a terminal obeys, and with `?` for halves of surrogate pairs, which no file takes."""
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode("utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {plain_text(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_plain(below) for below in value]
    return plain_text(value) if isinstance(value, str) else value


def guess_tokens(text: str) -> int:
    """Return about how many tokens a text has: one for every four characters."""
    return -(-len(text) // 4)
