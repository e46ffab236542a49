"""One chat request to an OpenAI-compatible endpoint, sent again while the server is busy or fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import time
import zlib
from collections.abc import Mapping
from typing import Any

import httpx2

from cwdpo._version import __version__
from cwdpo.chat.requests import Reply, guess_tokens, plain_text
from cwdpo.errors import UserError, one_line
from cwdpo.recipe.endpoint_sections import EndpointSection

__all__ = ["ChatClient", "ServiceError"]

_TRANSIENT = {408, 409, 425, 429}
"""Status codes worth another attempt, beside those from 500 on."""
FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds between attempts, about."""
_MOST_TOKENS = 10**9
"""A server that counts more does not count."""
_REMEDIES = {
    401: "set the key in the environment variable {variable}",
    403: "set the key in the environment variable {variable}",
    404: "see address and model under {place}",
}
_NO_SCHEMAS = " (structured: json_object or none, for servers without schemas)"


class ServiceError(UserError):
    """An endpoint cannot be used. Everything it has answered is kept."""


class _Transient(Exception):
    """A failure worth another attempt, after a pause that the server may have asked for."""

    def __init__(self, problem: str, pause: float | None = None) -> None:
        super().__init__(problem)
        self.pause = pause


class ChatClient:
    """Sends chat requests; used within one event loop, as a context manager.

    Args:
        settings: Servers, model, key, limits.
    """

    def __init__(self, settings: EndpointSection) -> None:
        self._settings = settings
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):  # httpx would repeat the key in its own error
            raise ServiceError(f"the key in {settings.key_variable} contains invalid characters; set it again")
        headers = {"User-Agent": f"cwdpo/{__version__}", "Accept-Encoding": "gzip"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=settings.concurrency)
        self._http = httpx2.AsyncClient(headers=headers, timeout=None, limits=limits)
        self._servers = itertools.cycle(settings.urls)
        self._stopped, self._next_turn = asyncio.Event(), 0.0

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Send nothing more: requests that wait for another attempt fail at once."""
        self._stopped.set()

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """Send one request.

        Raises:
            ServiceError: The server refuses it, or failed at every attempt.
        """
        attempts = self._settings.attempts
        for attempt in itertools.count(1):
            await self._turn()
            server = next(self._servers)
            where = f"{self._settings.place.rpartition('.')[2]} {server}: "
            try:
                async with asyncio.timeout(self._settings.timeout):
                    return _read(await self._post(server, body), body)
            except TimeoutError:
                failure = _Transient(f"no complete answer in {self._settings.timeout:g} s")
            except _Transient as error:
                failure = error
            except ServiceError as error:
                raise ServiceError(self._clean(f"{where}{error}")) from None
            if attempt >= attempts or self.stopped:
                many = f"{attempts} attempts failed, the last with: " if attempts > 1 else ""
                kept = "what was answered is kept, run the command again to resume"
                raise ServiceError(self._clean(f"{where}{many}{failure}; {kept}"))
            growing = random.uniform(0, FIRST_PAUSE * 2**attempt)
            await self._sleep(min(growing if failure.pause is None else failure.pause, _LONGEST_PAUSE))
        raise AssertionError

    async def _turn(self) -> None:
        """Wait until the rate allows another request."""
        if self._settings.requests_per_minute is None:
            return
        now = time.monotonic()
        turn = max(now, self._next_turn)
        self._next_turn = turn + 60 / self._settings.requests_per_minute
        await self._sleep(turn - now)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _post(self, server: str, body: Mapping[str, Any]) -> bytes:
        if self.stopped:
            raise _Transient("stopped")
        try:
            async with self._http.stream("POST", f"{server}/chat/completions", json=body) as response:
                content = await self._content(response)
        except httpx2.TransportError as error:
            raise _Transient(one_line(error, 160) or type(error).__name__) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServiceError(one_line(error, 160)) from None
        if response.status_code in _TRANSIENT or response.status_code >= 500:
            raise _Transient(self._told(response, content), _retry_after(response))
        if response.status_code != 200:
            refused = _NO_SCHEMAS if response.status_code in (400, 422) and "response_format" in body else ""
            remedy = _REMEDIES.get(response.status_code, f"see {{place}}{refused}")
            facts = {"variable": self._settings.key_variable, "place": self._settings.place}
            raise ServiceError(f"{self._told(response, content)}; {remedy.format(**facts)}")
        return content

    async def _content(self, response: httpx2.Response) -> bytes:
        """Read an answer no further than the limit. httpx would decompress whole chunks, however large they become."""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise ServiceError(f"the answer is compressed by {one_line(encoding, 40)}, which was not asked for")
        unzip = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
        limit, content = int(self._settings.answer_limit * 2**20), bytearray()
        async for chunk in response.aiter_raw(2**16):
            try:
                content += chunk if unzip is None else unzip.decompress(chunk, limit + 1 - len(content))
            except zlib.error:
                raise _Transient("the answer cannot be decompressed (cut short?)") from None
            if len(content) > limit or (unzip is not None and len(unzip.unused_data) > limit):
                s = self._settings
                raise ServiceError(f"the answer is larger than {s.answer_limit:g} MiB; see {s.place}.answer_limit")
        return bytes(content)

    def _told(self, response: httpx2.Response, content: bytes) -> str:
        """Return status and message of a failure."""
        try:
            error = json.loads(content)["error"]
            message = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError, RecursionError):
            message = content[:4096].decode("utf-8", "replace")
        phrase = f"{response.status_code} {response.reason_phrase}".strip()
        # The key goes before the message is cut: half a key would stay.
        return f"{phrase}: {one_line(self._without_key(message), 200)}" if message else phrase

    def _without_key(self, text: str) -> str:
        """Return a message without the key, which servers like to repeat."""
        return text.replace(self._key, "…") if self._key else text

    def _clean(self, text: str) -> str:
        """Return a message on one line, without the key."""
        return one_line(self._without_key(text), 600)


def _read(content: bytes, body: Mapping[str, Any]) -> Reply:
    try:
        answer = json.loads(content)
        choices = answer["choices"]
        texts = [choice["message"]["content"] or "" for choice in choices]
        whole = choices[0].get("finish_reason") != "length"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Transient("the answer is no chat completion (cut short?)") from None
    if not all(isinstance(text, str) for text in texts):
        raise _Transient("the answer is no chat completion (its content is no text)")
    first, *more = map(plain_text, texts)
    usage: Any = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    sent = _count(counts.get("prompt_tokens"), json.dumps(body["messages"]))
    received = _count(counts.get("completion_tokens"), "".join(texts))
    return Reply(first, sent, received, whole, more)


def _count(value: Any, text: str) -> int:
    """Return the tokens that a server counts, or a guess if that is no sensible number."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else guess_tokens(text)


def _retry_after(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
