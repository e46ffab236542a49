"""One request to an OpenAI-compatible endpoint, sent again while the server is busy or fails."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import tenacity

from cwdpo._version import __version__
from cwdpo.data.images import open_image
from cwdpo.data.schema import ImageRef
from cwdpo.errors import UserError, one_line
from cwdpo.recipe import EndpointSection, WriterSection

__all__ = [
    "ChatClient",
    "Reply",
    "ServiceError",
    "guess_request",
    "guess_tokens",
    "image_part",
    "structured_request",
    "with_pictures",
]

_PASSING = {408, 409, 425, 429}
"""Status codes that may be gone in a moment, beside those from 500 on."""

_LONGEST_PAUSE = 60.0
_IMAGE_SIDE = 768
_IMAGE_TOKENS = 800
"""A guess, for the estimate."""
_REMEDIES = {
    401: "set the key in the environment variable {variable}",
    403: "set the key in the environment variable {variable}",
    404: "see address and model under {place}",
    400: "see {place}{refused}",
    422: "see {place}{refused}",
}


class ServiceError(UserError):
    """An endpoint cannot be used, or no longer. What it has answered so far is kept."""


class _Passing(Exception):
    """A failure that may be gone in a moment."""

    def __init__(self, what: str, pause: float | None = None) -> None:
        super().__init__(what)
        self.pause = pause
        self.where = ""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: The answer.
        sent: Tokens sent, as the server counts, or a guess.
        received: Tokens received.
        whole: Whether the answer ended by itself.
        more: Further answers, where several were asked for.
    """

    text: str
    sent: int
    received: int
    whole: bool = True
    more: tuple[str, ...] = ()


def structured_request(
    settings: WriterSection, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the body of a request whose answer is to be JSON, held to it in the way that the server knows.

    Args:
        settings: Model, temperature, length, and what is asked of the server.
        messages: The conversation so far.
        schema: Name and JSON schema of the answer.
    """
    body: dict[str, Any] = {"model": settings.model, "messages": list(messages)}
    body |= {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    if settings.structured == "json_schema":
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif settings.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def guess_tokens(text: str) -> int:
    """Return about how many tokens a text has, for endpoints that do not count: four characters each."""
    return -(-len(text) // 4)


def guess_request(body: Mapping[str, Any]) -> int:
    """Return about how many tokens a request has whose messages are texts, with pictures listed under `images`."""
    images = sum(len(message.get("images", ())) for message in body["messages"])
    return guess_tokens("".join(message["content"] for message in body["messages"])) + _IMAGE_TOKENS * images


def with_pictures(body: Mapping[str, Any], images: Sequence[ImageRef]) -> dict[str, Any]:
    """Return a request whose first message of the user lists pictures under `images` with the pictures in it."""
    system, first, *turns = body["messages"]
    parts = [image_part(ref, "JPEG", _IMAGE_SIDE, quality=85) for ref in images]
    parts.append({"type": "text", "text": first["content"]})
    return {**body, "messages": [system, {"role": "user", "content": parts}, *turns]}


def image_part(ref: ImageRef, kind: str = "PNG", side: int | None = None, **settings: Any) -> dict[str, Any]:
    """Return a picture as a part of a message.

    Args:
        ref: The picture.
        kind: `PNG` or `JPEG`.
        side: Make it smaller, so that no side is longer than this; None leaves it as it is.
        **settings: Of Pillow, for writing it.
    """
    picture, buffer = open_image(ref), io.BytesIO()
    if side is not None:
        picture.thumbnail((side, side))
    picture.save(buffer, kind, **settings)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind.lower()};base64,{content}"}}


class ChatClient:
    """Sends chat requests. Safe to use from several threads.

    Args:
        settings: Model, key, time limits, attempts, rate.
        base_urls: The servers; every attempt goes to the next one in turn.
        place: The section of the recipe, for errors.
        refused: What else an error says of a request that the server finds wrong.
        pause: First pause before a request is sent again, in seconds; it doubles, with chance.
    """

    def __init__(
        self,
        settings: EndpointSection,
        base_urls: Sequence[str],
        place: str,
        *,
        refused: str = "",
        pause: float = 1.0,
    ) -> None:
        self._settings, self._place, self._refused = settings, place, refused
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):  # the header would be refused with the key in the message
            raise ServiceError(f"the key in {settings.key_variable} holds characters that no key has; set it anew")
        headers = {"User-Agent": f"cwdpo/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=settings.concurrency)
        self._http = httpx2.Client(headers=headers, timeout=settings.timeout, limits=limits)
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._servers = itertools.cycle(base_urls)
        self._turns = _Turns(settings.requests_per_minute, self._stopped)
        self._growing = tenacity.wait_random_exponential(multiplier=pause, max=_LONGEST_PAUSE)

    def stop(self) -> None:
        """Send nothing any more: requests that wait for another attempt fail at once."""
        self._stopped.set()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """Send one chat request and return the answer.

        Raises:
            ServiceError: The server refuses it, or failed at every attempt.
        """
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_after_attempt(self._settings.attempts) | tenacity.stop_when_event_set(self._stopped),
            wait=self._pause,
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )
        try:
            return attempts(self._send, body)
        except _Passing as error:
            many = f"{self._settings.attempts} attempts failed, the last with: " if self._settings.attempts > 1 else ""
            raise ServiceError(
                self._clean(f"{error.where}{many}{error}; what was answered is kept, run the command again to go on")
            ) from None

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.pause if isinstance(error, _Passing) else None
        return self._growing(state) if asked is None else min(asked, _LONGEST_PAUSE)

    def _send(self, body: Mapping[str, Any]) -> Reply:
        self._turns.wait()
        with self._lock:
            server = next(self._servers)
        where = f"{self._place.rpartition('.')[2]} {server}: "
        try:
            return self._read(self._post(server, body), body)
        except _Passing as error:
            error.where = where
            raise
        except ServiceError as error:
            raise ServiceError(self._clean(f"{where}{error}")) from None

    def _post(self, server: str, body: Mapping[str, Any]) -> httpx2.Response:
        if self._stopped.is_set():
            raise _Passing("stopped")
        try:
            response = self._http.post(f"{server}/chat/completions", json=body)
        except httpx2.TimeoutException:
            raise _Passing(f"no answer in {self._settings.timeout:g} s") from None
        except httpx2.TransportError as error:
            raise _Passing(one_line(error, 160) or type(error).__name__) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServiceError(one_line(error, 160)) from None
        if response.status_code in _PASSING or response.status_code >= 500:
            raise _Passing(self._told(response), _retry_after(response))
        if response.status_code != 200:
            facts = {"variable": self._settings.key_variable, "place": self._place, "refused": self._refused}
            remedy = _REMEDIES.get(response.status_code, "see {place}").format(**facts)
            raise ServiceError(f"{self._told(response)}; {remedy}")
        return response

    def _read(self, response: httpx2.Response, body: Mapping[str, Any]) -> Reply:
        try:
            answer = json.loads(response.content)
            choice = answer["choices"][0]
            texts = [each["message"]["content"] or "" for each in answer["choices"]]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _Passing("the answer is no chat completion (cut short?)") from None
        if not all(isinstance(text, str) for text in texts):
            raise _Passing("the answer is no chat completion (its content is no text)")
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        sent, received = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Reply(
            texts[0],
            sent if isinstance(sent, int) else guess_tokens(json.dumps(body["messages"])),
            received if isinstance(received, int) else guess_tokens("".join(texts)),
            whole=choice.get("finish_reason") != "length",
            more=tuple(texts[1:]),
        )

    def _told(self, response: httpx2.Response) -> str:
        """Return status and message of a failure."""
        try:
            error = json.loads(response.content)["error"]
            message = error["message"] if isinstance(error, dict) else str(error)
        except (ValueError, KeyError, TypeError, RecursionError):
            message = response.content.decode("utf-8", "replace")
        phrase = f"{response.status_code} {response.reason_phrase}".strip()
        # The key goes before the message is cut: half a key would stay.
        return f"{phrase}: {one_line(self._without_key(str(message)), 200)}" if message else phrase

    def _without_key(self, text: str) -> str:
        """Return a message without the key, which servers like to repeat."""
        return text.replace(self._key, "…") if self._key else text

    def _clean(self, text: str) -> str:
        """Return a message on one line, without the key."""
        return one_line(self._without_key(text), 600)


class _Turns:
    """Lets threads through one by one, at most so many in a minute."""

    def __init__(self, per_minute: int | None, stopped: threading.Event) -> None:
        self._apart = 60 / per_minute if per_minute else 0.0
        self._stopped, self._lock, self._next = stopped, threading.Lock(), 0.0

    def wait(self) -> None:
        if not self._apart:
            return
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + self._apart
        self._stopped.wait(max(0.0, turn - time.monotonic()))


def _retry_after(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
