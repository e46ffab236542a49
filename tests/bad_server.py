"""A small OpenAI-compatible server on 127.0.0.1 that misbehaves as it is told, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cwdpo.chat import client

Answer = tuple[int, Any, dict[str, str]]


def completion(content: Any, finish: str = "stop", usage: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {
        "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish}]
    }
    return found | ({"usage": {"prompt_tokens": 100, "completion_tokens": 20}} if usage else {})


def edited(caption: str, changed: str = "object") -> dict[str, Any]:
    return completion(json.dumps({"caption": caption, "changed": changed}))


def caption_of(body: dict[str, Any]) -> str:
    """The caption that a request wants edited, or the prompt that it wants answered."""
    content = body["messages"][1]["content"]
    text: str = content if isinstance(content, str) else content[-1]["text"]
    return text.splitlines()[0].removeprefix("Caption: ")


class BadServer:
    """Answers with `plan(caption, how often this caption was asked for)`: (status, body, headers).

    A body of bytes is sent as it is; one that is a function is given the handler and sends what it likes.
    """

    def __init__(self, plan: Callable[[str, int], Answer]) -> None:
        self.plan = plan
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way = self.most_under_way = 0
        lock, owner = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                caption = caption_of(body)
                with lock:
                    owner.asked[caption] += 1
                    count = owner.asked[caption]
                    owner.bodies.append(body)
                    owner.headers.append({k.lower(): v for k, v in self.headers.items()})
                    owner.times.append(time.monotonic())
                    owner.under_way += 1
                    owner.most_under_way = max(owner.most_under_way, owner.under_way)
                status, answer, headers = owner.plan(caption, count)
                if callable(answer):
                    self.close_connection = True
                    with suppress(OSError):
                        answer(self)
                    return
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                with lock:
                    owner.under_way -= 1
                    if status == 200:
                        owner.answered[caption] += 1
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", headers.pop("Content-Length", str(len(raw))))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(raw)
                    if int(self.headers["Content-Length"]) and len(raw) == 0:
                        self.close_connection = True
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that was killed is no error of the server."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> BadServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(plan: Callable[[str, int], Answer]) -> Iterator[BadServer]:
    first, client.FIRST_PAUSE = client.FIRST_PAUSE, 0.01
    try:
        with BadServer(plan) as server:
            yield server
    finally:
        client.FIRST_PAUSE = first
