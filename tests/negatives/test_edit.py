"""Edits by a language model behind a server that misbehaves on purpose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bad_server import Answer, caption_of, completion, edited, serving
from cwdpo.chat.client import Reply, ServiceError
from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import RecipeError
from cwdpo.negatives.candidates import Candidate
from cwdpo.negatives.sources.edit import Edit, EditSource, edit_problem, read_edit
from cwdpo.recipe import EditorSection
from cwdpo.recipe.load_recipe import load_recipe

KEY = "sk-very-secret-0123456789"


def rows(count: int, **changes: Any) -> list[PromptGroup]:
    return [
        PromptGroup(f"row-{i}", (), (user_message("describe", 0),), (Response(f"a red car number {i}"),), **changes)
        for i in range(count)
    ]


def asked(groups: list[PromptGroup], count: int) -> tuple[list[PromptGroup], dict[str, int]]:
    """What a source is called with: so many negatives for every row."""
    return groups, {g.id: count for g in groups}


def source(url: str, folder: Path, notes: list[str] | None = None, **settings: Any) -> EditSource:
    values = {"base_url": url, "model": "editor", "timeout": 5.0, "concurrency": 4, "attempts": 4} | settings
    note = None if notes is None else notes.append
    return EditSource(EditorSection(**values), seed=0, folder=folder, note=note, pause=0.01)


def good(caption: str, count: int = 1) -> Answer:
    return 200, edited(caption.replace("car", "bus")), {}


def texts(found: Any) -> dict[str, list[str]]:
    return {key: [c.text for c in candidates] for key, candidates in found.items()}


EXPECTED = {f"row-{i}": [f"a red bus number {i}"] for i in range(12)}


def test_edits_are_made_and_kept(tmp_path: Path):
    notes: list[str] = []

    def plan(caption: str, count: int) -> Answer:
        time.sleep(0.1)
        return good(caption)

    with serving(plan) as server:
        found = source(server.url, tmp_path, notes, price_input=1, price_output=2).propose(*asked(rows(12), 1))
        assert texts(found) == EXPECTED
        assert found["row-0"] == [Candidate("a red bus number 0", "edit", "hard", ("object",))]
        assert set(server.asked.values()) == {1} and 1 < server.most_under_way <= 4
        again = source(server.url, tmp_path).propose(*asked(rows(12), 1))
        assert texts(again) == EXPECTED and sum(server.asked.values()) == 12
        assert server.bodies[0]["response_format"]["type"] == "json_schema"
        kinds = {body["messages"][1]["content"].split("Kind: ")[1] for body in server.bodies}
        assert len(kinds) >= 3  # the kind of fact is drawn
    assert len(notes) == 1 and "12 requests to editor" in notes[0] and "tokens, about 0.00" in notes[0]


def test_several_edits_of_one_caption(tmp_path: Path):
    def plan(caption: str, count: int) -> Answer:
        return 200, edited(caption.replace("red", f"colour{count}"), "attribute"), {}

    with serving(plan) as server:
        found = source(server.url, tmp_path).propose(*asked(rows(2), 6))
        assert {len({c.text for c in candidates}) for candidates in found.values()} == {6}
        assert sum(server.asked.values()) == 12


def test_rows_with_the_same_content_are_asked_once(tmp_path: Path):
    twins = [PromptGroup(f"row-{i}", (), (user_message("describe", 0),), (Response("a car"),)) for i in range(8)]

    def plan(caption: str, count: int) -> Answer:
        time.sleep(0.05)
        return good(caption)

    with serving(plan) as server:
        found = source(server.url, tmp_path).propose(*asked(twins, 1))
        # which kind is asked for depends on the row: as many requests as kinds were drawn
        kinds = {body["messages"][1]["content"] for body in server.bodies}
        assert len(found) == 8 and sum(server.asked.values()) == len(kinds) <= 5


TROUBLES: dict[str, Answer] = {
    "busy": (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
    "broken": (500, b"oops", {}),
    "gateway": (503, b"", {}),
    "truncated": (200, b'{"choices": [{"message": {"content": "{\\"capt', {}),
    "no completion": (200, {"choices": []}, {}),
    "hung up": (200, b"half", {"Content-Length": "5000"}),
    "no json at all": (200, b"<html>", {}),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_server_in_trouble_is_asked_again(trouble: str, tmp_path: Path):
    def plan(caption: str, count: int) -> Answer:
        status, body, headers = TROUBLES[trouble]
        return (status, body, dict(headers)) if count < 3 else good(caption)

    with serving(plan) as server:
        settings = {"timeout": 0.3} if trouble == "hung up" else {}
        assert texts(source(server.url, tmp_path, **settings).propose(*asked(rows(3), 1))) == {
            k: EXPECTED[k] for k in ("row-0", "row-1", "row-2")
        }
        assert set(server.asked.values()) == {3}


def test_a_slow_server_is_asked_again(tmp_path: Path):
    def plan(caption: str, count: int) -> Answer:
        if count == 1:
            time.sleep(0.6)
        return good(caption)

    with serving(plan) as server:
        assert texts(source(server.url, tmp_path, timeout=0.2).propose(*asked(rows(2), 1))) == {
            k: EXPECTED[k] for k in ("row-0", "row-1")
        }


BAD_ANSWERS: dict[str, tuple[Any, str]] = {
    "prose": (completion("Sure! Here it is."), "no JSON"),
    "cut": (completion('{"caption": "a re', "length"), "cut short"),
    "half": (completion('{"caption": "a re'), "no whole JSON"),
    "schema": (completion('{"text": "a red bus"}'), "caption: Field required"),
    "kind": (completion('{"caption": "a red bus number 0", "changed": "mood"}'), "changed: Input should be"),
    "type": (completion('{"caption": 7, "changed": "object"}'), "caption: Input should be"),
    "list": (completion('[{"caption": 7}]'), "caption: Input should be"),
    "null": (completion(None), "no JSON"),
    "same": (edited("A red car, number 0"), "nothing was changed"),
    "gold": (edited("a crimson car"), "equals another right one"),
    "essay": (edited("word " * 50), "has 50 words instead of 5"),
    "rewritten": (edited("one two three four five six seven eight"), "8 words were changed, at most 2"),
    "empty": (edited("..."), "no words"),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_an_unusable_answer_is_named_and_asked_for_again(answer: str, tmp_path: Path):
    body, why = BAD_ANSWERS[answer]
    row = rows(1, references=("a crimson car",))
    with serving(lambda caption, count: (200, body, {}) if count < 3 else good(caption)) as server:
        assert texts(source(server.url, tmp_path).propose(*asked(row, 1))) == {"row-0": ["a red bus number 0"]}
        assert server.asked.total() == 3
        said = server.bodies[1]["messages"][-1]["content"]
        assert said.startswith("That cannot be used: ") and why in said
    with serving(lambda caption, count: (200, body, {})) as server:
        never = source(server.url, tmp_path / "never", rewrites=1)
        candidate = never.propose(*asked(row, 1))["row-0"][0]
        assert candidate.problem is not None and why in candidate.problem
        # an answer that could not be used is an answer: it is not asked for again
        assert source(server.url, tmp_path / "never", rewrites=1).propose(*asked(row, 1))["row-0"][0] == candidate
        assert server.asked.total() == 2


def test_read_edit_passes_over_what_stands_around_the_json():
    fenced = 'Here:\n```json\n{"caption": " a  bus ", "changed": "object", "why": 1}\n```'
    assert read_edit(Reply(fenced, 1, 1)) == Edit(caption="a bus", changed="object")
    assert edit_problem(Edit(caption="a bus", changed="object"), "a car", ["a car"], 1) is None


def test_a_short_caption_is_not_written_anew():
    """Six words: at most 3 may change, though 6 are allowed; what a small model gave as an edit changes all of them."""
    gold = "A boy is covered in bubbles ."
    other = edit_problem(Edit(caption="The wrong caption", changed="object"), gold, [gold], 6)
    assert other == "6 words were changed, at most 3 may be"
    assert edit_problem(Edit(caption="A girl was covered in mud .", changed="object"), gold, [gold], 6) is None


def fail_after(limit: int, answer: Answer) -> Any:
    seen: set[str] = set()

    def plan(caption: str, count: int) -> Answer:
        if caption in seen or len(seen) < limit:
            seen.add(caption)
            return good(caption)
        status, body, headers = answer
        return status, body, dict(headers)

    return plan


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {}),
            "401 Unauthorized: Incorrect API key",
        ),
        ((404, {"error": "no such model"}, {}), "404 Not Found: no such model"),
        ((400, {"error": {"message": "response_format is not supported"}}, {}), "structured: json_object or none"),
        ((500, {"error": {"message": "cuda\nout of memory"}}, {}), "4 attempts failed, the last with: 500"),
        ((429, {"error": {"message": "quota"}}, {"Retry-After": "0"}), "4 attempts failed, the last with: 429"),
    ],
)
def test_a_server_that_fails_for_good(answer: Answer, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    plan = fail_after(5, answer)
    with serving(plan) as server:
        with pytest.raises(ServiceError) as caught:
            source(server.url, tmp_path, concurrency=2).propose(*asked(rows(12), 1))
        text = str(caught.value)
        assert message in text and "\n" not in text and KEY not in text and server.url in text
        assert all(h["authorization"] == f"Bearer {KEY}" for h in server.headers)
        kept = (tmp_path / "edit.jsonl").read_text(encoding="utf-8")
        assert kept.count("\n") == 5 and KEY not in kept  # everything made so far is kept
        server.plan = good
        before = Counter(server.answered)
        assert texts(source(server.url, tmp_path).propose(*asked(rows(12), 1))) == EXPECTED
        assert all(server.answered[c] == 1 for c in before)  # none of them was asked again
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY in p.read_text(encoding="utf-8")]


def test_nobody_answers(tmp_path: Path):
    with pytest.raises(ServiceError, match=r"editor http://127\.0\.0\.1:9/v1: 2 attempts failed.*[Cc]onnect"):
        source("http://127.0.0.1:9/v1", tmp_path, attempts=2).propose(*asked(rows(1), 1))


def test_the_cap_is_kept(tmp_path: Path):
    # a request: about 350 tokens sent and 25 back are guessed, 100 and 20 are counted by the server
    prices = {"price_input": 1000.0, "price_output": 1000.0}
    with serving(good) as server:
        with pytest.raises(ServiceError, match=r"12 requests cost about .* more than negatives.editor.max_cost = 1;"):
            source(server.url, tmp_path, max_cost=1, **prices).propose(*asked(rows(12), 1))
        assert not server.asked  # nothing was asked
        source(server.url, tmp_path, max_cost=1, **prices).propose(*asked(rows(1), 1))
        # 0.12 is spent; the next ones at 1,000 tokens each come to more than the estimate of about 400
        server.plan = lambda caption, count: (200, {**edited(caption.replace("car", "bus")), "usage": big}, {})
        big = {"prompt_tokens": 3000, "completion_tokens": 1000}
        with pytest.raises(ServiceError, match=r"max_cost = 9 is reached \((8\.12|12\.1\d*|4\.12)"):
            source(server.url, tmp_path, max_cost=9, concurrency=2, **prices).propose(*asked(rows(12), 1))
        assert 3 <= server.asked.total() <= 4
        assert (tmp_path / "edit.jsonl").read_text().count("\n") == server.asked.total()


def test_the_rate_is_kept(tmp_path: Path):
    with serving(good) as server:
        source(server.url, tmp_path, requests_per_minute=600).propose(*asked(rows(6), 1))
    # one every 0.1 s
    assert server.times[-1] - server.times[0] > 0.35


def test_pictures_are_sent_and_are_part_of_the_key(tmp_path: Path):
    from PIL import Image

    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (900, 30), colour).save(tmp_path / f"{name}.png")
    groups = [
        PromptGroup(n, (ImageRef(path=str(tmp_path / f"{n}.png")),), (user_message("x"),), (Response("a red car"),))
        for n in ("a", "b")
    ]
    with serving(good) as server:
        source(server.url, tmp_path, images=True).propose(*asked(groups, 1))
        urls = {body["messages"][1]["content"][0]["image_url"]["url"][:30] for body in server.bodies}
        assert urls == {"data:image/jpeg;base64,/9j/4AA"} and len(server.bodies) == 2
        assert all(caption_of(body) == "a red car" for body in server.bodies)
    assert "base64" not in (tmp_path / "edit.jsonl").read_text()


def test_a_key_in_the_recipe_is_refused_and_not_repeated():
    for change in (f"negatives.editor.key_variable={KEY}", f"negatives.editor.base_url=https://me:{KEY}@host/v1"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(None, [change])
        assert KEY not in str(caught.value) and "negatives.editor" in str(caught.value)
    with pytest.raises(RecipeError, match=r"needs negatives\.editor\.base_url"):
        load_recipe(None, ["negatives.stage1.edit=1"])
    with pytest.raises(RecipeError, match="max_cost needs price_input"):
        load_recipe(None, ["negatives.editor.max_cost=1"])


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_edit import asked, rows, source
source({url!r}, Path({folder!r}), concurrency={concurrency}).propose(*asked(rows(12), 1))
"""


def test_killed_nothing_that_was_answered_is_asked_again(tmp_path: Path):
    concurrency = 3

    def slow(caption: str, count: int) -> Answer:
        time.sleep(0.15)
        return good(caption)

    with serving(slow) as server:
        script = KILLED.format(
            tests=str(Path(__file__).parent), url=server.url, folder=str(tmp_path), concurrency=concurrency
        )
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
        deadline = time.monotonic() + 120
        while server.answered.total() < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(0.3)
        kept = [json.loads(line) for line in (tmp_path / "edit.jsonl").read_text().splitlines()]
        assert 5 - concurrency <= len(kept) < 12
        before = server.asked.total()
        server.plan = good
        assert texts(source(server.url, tmp_path).propose(*asked(rows(12), 1))) == EXPECTED
        # asked twice at most: what was under way
        assert server.asked.total() == before + 12 - len(kept)
        assert sum(n - 1 for n in server.asked.values()) <= concurrency + 1
