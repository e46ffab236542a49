"""Many conversations with servers that misbehave on purpose: asked again, within limits, nothing asked twice."""

from __future__ import annotations

import gzip
import itertools
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bad_server import Answer, completion, serving
from cwdpo.chat.client import ServiceError
from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.requests import Conversation, Request, UnusableAnswer, json_request, until_usable
from cwdpo.data.schema import ImageRef
from cwdpo.errors import RecipeError
from cwdpo.recipe import EditorSection
from cwdpo.recipe.load_recipe import load_recipe
from tiny_runs import rows_of

KEY = "sk-very-secret-0123456789"
PROPERTIES = {"caption": {"type": "string"}}


def model(url: str, folder: Path, notes: list[str] | None = None, **settings: Any) -> LanguageModel[EditorSection]:
    values = {"base_url": url, "model": "m", "timeout": 5.0, "concurrency": 4, "attempts": 4} | settings
    note = None if notes is None else notes.append
    return LanguageModel(EditorSection(**values), folder / "answers.jsonl", note=note)


def request(text: str, url: str = "", **more: Any) -> Request:
    return json_request(EditorSection(base_url=url, model="m"), "task", f"Caption: {text}", PROPERTIES, (), **more)


def echo(text: str, **more: Any) -> Conversation[str]:
    reply = yield request(text, **more)
    return reply.text


def ask(asked: LanguageModel[EditorSection], count: int) -> list[str]:
    return asked.ask("echo", [echo(f"text {i}") for i in range(count)])


def good(text: str, count: int = 1) -> Answer:
    return 200, completion(text.upper()), {}


EXPECTED = [f"TEXT {i}" for i in range(12)]


def test_answers_come_at_once_and_are_kept(tmp_path: Path):
    notes: list[str] = []

    def plan(text: str, count: int) -> Answer:
        time.sleep(0.1)
        return good(text)

    with serving(plan) as server:
        assert ask(model(server.url, tmp_path, notes, price_input=1, price_output=2), 12) == EXPECTED
        assert set(server.asked.values()) == {1} and 1 < server.most_under_way <= 4
        assert server.bodies[0]["response_format"]["json_schema"]["name"] == "answer"
        assert ask(model(server.url, tmp_path, notes), 12) == EXPECTED and server.asked.total() == 12
        assert model(server.url, tmp_path).ask("echo", [echo("same") for _ in range(8)]) == ["SAME"] * 8
        assert server.asked["same"] == 1  # one question, whoever asks it
        assert len(set(model(server.url, tmp_path).ask("echo", [echo("a", salt=str(i)) for i in range(3)]))) == 1
        assert server.asked["a"] == 3  # three samples
    assert len(notes) == 1 and notes[0].startswith(f"echo: 12 requests to m at {server.url}, about ")
    assert " tokens, about 0.00" in notes[0]


def drip(first: bytes) -> Callable[[Any], None]:
    def send(handler: Any) -> None:
        handler.wfile.write(first)
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    return send


TROUBLES: dict[str, Answer] = {
    "busy": (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
    "broken": (500, b"oops", {}),
    "gateway": (503, b"", {}),
    "truncated": (200, b'{"choices": [{"message": {"content": "{\\"capt', {}),
    "no completion": (200, {"choices": []}, {}),
    "no list": (200, {"choices": {"0": 1}}, {}),
    "no text": (200, completion(7), {}),
    "hung up": (200, b"half", {"Content-Length": "5000"}),
    "no json at all": (200, b"<html>", {}),
    "half of a gzip": (200, gzip.compress(b"{}" * 999)[:20], {"Content-Encoding": "gzip"}),
    "no gzip": (200, b"{}", {"Content-Encoding": "gzip"}),
    "drips its body": (200, drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"), {}),
    "drips its head": (200, drip(b"HTTP/1.1 200 OK\r\nX: "), {}),
    "says nothing": (200, lambda handler: time.sleep(2), {}),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_server_in_trouble_is_asked_again(trouble: str, tmp_path: Path):
    def plan(text: str, count: int) -> Answer:
        status, body, headers = TROUBLES[trouble]
        return (status, body, dict(headers)) if count < 3 else good(text)

    slow = trouble in ("hung up", "drips its body", "drips its head", "says nothing")
    with serving(plan) as server:
        start = time.monotonic()
        assert ask(model(server.url, tmp_path, **({"timeout": 0.4} if slow else {})), 3) == EXPECTED[:3]
        assert set(server.asked.values()) == {3} and time.monotonic() - start < 3


def endless(head: bytes, part: bytes) -> Callable[[Any], None]:
    def send(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        for _ in range(1000):
            handler.wfile.write(part)

    return send


_packer = zlib.compressobj(9, wbits=31)
BOMB = _packer.compress(bytes(2**26)) + _packer.flush(zlib.Z_SYNC_FLUSH)
HUGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "plain": (endless(b"", b" " * 2**20), "larger than 2 MiB; see negatives.editor.answer_limit"),
    "chunked": (
        endless(b"Transfer-Encoding: chunked\r\n", b"100000\r\n" + b" " * 2**20 + b"\r\n"),
        "larger than 2 MiB",
    ),
    "gzip": (endless(b"Content-Encoding: gzip\r\n", BOMB), "larger than 2 MiB"),
    "twice": (endless(b"Content-Encoding: gzip, gzip\r\n", gzip.compress(BOMB)), "compressed by gzip, gzip"),
    "brotli": (endless(b"Content-Encoding: br\r\n", b"\x8b"), "compressed by br"),
    "an error": (endless(b"", b" " * 2**20), "larger than 2 MiB"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_answer_is_refused_as_it_arrives(kind: str, tmp_path: Path):
    send, message = HUGE[kind]
    with serving(lambda text, count: (200, send, {})) as server:
        tracemalloc.start()
        with pytest.raises(ServiceError, match=message):
            ask(model(server.url, tmp_path, answer_limit=2), 1)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        tracemalloc.stop()
        assert server.asked.total() == 1


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": 10**400}, {"prompt_tokens": -5}, {"completion_tokens": True}, {"prompt_tokens": "many"}, 7],
)
def test_a_server_that_cannot_count_is_not_believed(usage: Any, tmp_path: Path):
    with serving(lambda text, count: (200, completion(text) | {"usage": usage}, {})) as server:
        asked = model(server.url, tmp_path, price_input=1000, price_output=1000)
        assert ask(asked, 1) == ["text 0"]
        assert 0 < asked.spent < 1
        assert model(server.url, tmp_path, price_input=1000, price_output=1000).spent == asked.spent


def test_control_characters_stay_out_of_answers_and_errors(tmp_path: Path):
    with serving(lambda text, count: (200, completion("\x1b]0;title\x07a\nb\x1b[2J\x9b1m"), {})) as server:
        assert ask(model(server.url, tmp_path), 1) == ["]0;titlea\nb[2J1m"]
    for body in ({"error": {"message": "\x1b[2Jgone"}}, b"\x1b[2Jgone", {"error": "\x1b[2Jgone"}):
        with serving(lambda text, count, body=body: (400, body, {})) as server, pytest.raises(ServiceError) as caught:
            ask(model(server.url, tmp_path / "e"), 1)
        assert "gone" in str(caught.value) and str(caught.value).isprintable()


def fail_after(limit: int, answer: Answer) -> Any:
    seen: set[str] = set()

    def plan(text: str, count: int) -> Answer:
        if text in seen or len(seen) < limit:
            seen.add(text)
            return good(text)
        status, body, headers = answer
        return status, body, dict(headers)

    return plan


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {"error": {"message": f"Incorrect API key: {KEY}"}}, {}), "401 Unauthorized: Incorrect API key: …; set"),
        ((404, {"error": "no such model"}, {}), "404 Not Found: no such model; see address and model"),
        ((400, {"error": {"message": "response_format is not supported"}}, {}), "structured: json_object or none"),
        ((500, {"error": {"message": "cuda\nout of memory"}}, {}), "4 attempts failed, the last with: 500"),
        ((429, {"error": {"message": "quota"}}, {"Retry-After": "0"}), "4 attempts failed, the last with: 429"),
    ],
)
def test_a_server_that_fails_for_good(answer: Answer, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(fail_after(5, answer)) as server:
        with pytest.raises(ServiceError) as caught:
            ask(model(server.url, tmp_path, concurrency=2), 12)
        text = str(caught.value)
        assert text.startswith(f"editor {server.url}: ") and message in text and "\n" not in text and KEY not in text
        assert all(h["authorization"] == f"Bearer {KEY}" for h in server.headers)
        kept = (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
        assert kept.count("\n") == 5 and KEY not in kept
        server.plan = good
        before = Counter(server.answered)
        assert ask(model(server.url, tmp_path), 12) == EXPECTED
        assert all(server.answered[c] == 1 for c in before)


def test_nobody_answers(tmp_path: Path):
    with pytest.raises(ServiceError, match=r"editor http://127\.0\.0\.1:9/v1: 2 attempts failed.*[Cc]onnect"):
        ask(model("http://127.0.0.1:9/v1", tmp_path, attempts=2), 1)


def test_the_cap_is_kept(tmp_path: Path):
    # a request: some 25 tokens sent and 20 back are expected, 100 and 20 are counted by the server
    prices = {"price_input": 1000.0, "price_output": 1000.0}
    with serving(good) as server:
        with pytest.raises(ServiceError, match=r"12 requests cost about .* more than negatives.editor.max_cost = 0.3;"):
            ask(model(server.url, tmp_path, max_cost=0.3, **prices), 12)
        assert not server.asked
        asked = model(server.url, tmp_path, max_cost=0.3, **prices)
        assert ask(asked, 1) == EXPECTED[:1] and asked.spent == pytest.approx(0.12)
        # an answer costs 4 from now on: after three of them, 12.12 is spent, and less than 4 is left of the cap
        big = {"usage": {"prompt_tokens": 3000, "completion_tokens": 1000}}
        server.plan = lambda text, count: (200, completion(text) | big, {})
        with pytest.raises(ServiceError, match=r"max_cost = 13 is reached \((8\.12|12\.12) spent\)"):
            ask(model(server.url, tmp_path, max_cost=13, concurrency=2, **prices), 12)
        assert 3 <= server.asked.total() <= 4
        assert (tmp_path / "answers.jsonl").read_text().count("\n") == server.asked.total()


def test_the_rate_is_kept(tmp_path: Path):
    with serving(good) as server:
        ask(model(server.url, tmp_path, requests_per_minute=600), 6)
    assert server.times[-1] - server.times[0] > 0.35  # one every 0.1 s


def test_images_are_sent_and_count(tmp_path: Path):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (900, 30), colour).save(tmp_path / f"{name}.png")
    settings = EditorSection(base_url="http://x/v1", model="m", images=True)

    def look(name: str) -> Conversation[str]:
        images = [ImageRef(path=str(tmp_path / f"{name}.png"))]
        return (yield json_request(settings, "task", "Caption: same", PROPERTIES, images)).text

    with serving(good) as server:
        model(server.url, tmp_path).ask("look", [look("a"), look("b")])
        urls = {body["messages"][1]["content"][0]["image_url"]["url"][:30] for body in server.bodies}
        assert urls == {"data:image/jpeg;base64,/9j/4AA"} and len(server.bodies) == 2
    assert "base64" not in (tmp_path / "answers.jsonl").read_text()


BAD_ANSWERS: dict[str, tuple[Any, str]] = {
    "prose": (completion("Sure! Here it is."), "no JSON"),
    "cut": (completion('{"caption": "a re', "length"), "cut short"),
    "half": (completion('{"caption": "a re'), "no whole JSON"),
    "deep": (completion('{"a":' * 100_000), "no whole JSON"),
    "null": (completion(None), "no JSON"),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_an_unusable_answer_is_sent_back_with_the_reason(kind: str, tmp_path: Path):
    body, why = BAD_ANSWERS[kind]

    def caption(retries: int) -> Conversation[str]:
        try:
            return (yield from until_usable(request("a"), lambda reply: reply.json()["caption"], retries))
        except UnusableAnswer as error:
            return f"unusable: {error}"

    fenced = 'Here:\n```json\n{"caption": "x"}\n```'
    with serving(lambda text, count: (200, body if count < 3 else completion(fenced), {})) as server:
        assert model(server.url, tmp_path).ask("c", [caption(2)]) == ["x"] and server.asked.total() == 3
        assert server.bodies[1]["messages"][-1]["content"].startswith("That cannot be used: ")
        assert why in server.bodies[1]["messages"][-1]["content"]
    with serving(lambda text, count: (200, body, {})) as server:
        for _ in range(2):  # an answer that could not be used is an answer: it is not asked for again
            (said,) = model(server.url, tmp_path / "never").ask("c", [caption(1)])
            assert said.startswith("unusable: ") and why in said and server.asked.total() == 2


def test_a_key_in_the_recipe_is_refused_and_not_repeated():
    for change in (f"negatives.editor.key_variable={KEY}", f"negatives.editor.base_url=https://me:{KEY}@host/v1"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(None, [change])
        assert KEY not in str(caught.value) and "negatives.editor" in str(caught.value)
    with pytest.raises(RecipeError, match="max_cost needs price_input"):
        load_recipe(None, ["negatives.editor.max_cost=1"])


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_language_model import ask, model
ask(model({url!r}, Path({folder!r}), concurrency=3), 12)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_nothing_that_was_answered_is_asked_again(number: signal.Signals, tmp_path: Path):
    def slow(text: str, count: int) -> Answer:
        time.sleep(0.15)
        return good(text)

    with serving(slow) as server:
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
        script = KILLED.format(paths=paths, url=server.url, folder=str(tmp_path))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
        for _ in itertools.takewhile(lambda _: server.answered.total() < 5, range(6000)):
            time.sleep(0.02)
        child.send_signal(number)
        assert child.wait(10) != 0
        time.sleep(0.3)
        kept = rows_of(tmp_path / "answers.jsonl")
        assert 2 <= len(kept) < 12
        if number == signal.SIGINT:  # what was in flight has arrived
            assert len(kept) == server.asked.total()
        before = server.asked.total()
        server.plan = good
        assert ask(model(server.url, tmp_path), 12) == EXPECTED
        assert server.asked.total() == before + 12 - len(kept)
