"""Edits by a language model: what is asked, and which answers are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bad_server import Answer, completion, edited, serving
from built_negatives import propose
from cwdpo.chat.requests import Reply
from cwdpo.data.schema import PromptGroup, Response, user_message
from cwdpo.negatives.source import Candidate
from cwdpo.negatives.sources.edit import Edit, read_edit
from cwdpo.recipe import EditorSection


def rows(count: int, **changes: Any) -> list[PromptGroup]:
    return [
        PromptGroup(f"row-{i}", (), (user_message("describe", 0),), (Response(f"a red car number {i}"),), **changes)
        for i in range(count)
    ]


def edits(url: str, folder: Path, groups: list[PromptGroup], count: int = 1, **settings: Any) -> Any:
    values = {"base_url": url, "model": "editor", "timeout": 5.0, "attempts": 4} | settings
    return propose("edit", groups, count, folder, {}, editor=EditorSection(**values))


def good(caption: str, count: int = 1) -> Answer:
    return 200, edited(caption.replace("car", "bus")), {}


def test_edits_of_a_drawn_kind(tmp_path: Path):
    with serving(good) as server:
        found = edits(server.url, tmp_path, rows(12))
        assert found == {f"row-{i}": [Candidate(f"a red bus number {i}", "hard", ("object",))] for i in range(12)}
        assert len({body["messages"][1]["content"].split("Kind: ")[1] for body in server.bodies}) >= 3
        assert edits(server.url, tmp_path, rows(12)) == found and server.asked.total() == 12


def test_several_edits_of_one_caption(tmp_path: Path):
    def plan(caption: str, count: int) -> Answer:
        return 200, edited(caption.replace("red", f"colour{count}"), "attribute"), {}

    with serving(plan) as server:
        found = edits(server.url, tmp_path, rows(2), 6)
        assert {len({c.text for c in candidates}) for candidates in found.values()} == {6}
        assert server.asked.total() == 12


BAD_ANSWERS: dict[str, tuple[Any, str]] = {
    "schema": (completion('{"text": "a red bus"}'), "caption: Field required"),
    "kind": (completion('{"caption": "a red bus number 0", "changed": "mood"}'), "changed: Input should be"),
    "list": (completion('[{"caption": 7}]'), "caption: Input should be"),
    "gold": (edited("a crimson car"), "equals a right one"),
    "rewritten": (edited("one two three four five six seven eight"), "8 words were changed, at most 2"),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_an_unusable_answer_is_asked_for_again(answer: str, tmp_path: Path):
    body, why = BAD_ANSWERS[answer]
    row = rows(1, references=("a crimson car",))
    with serving(lambda caption, count: (200, body, {}) if count < 3 else good(caption)) as server:
        assert edits(server.url, tmp_path, row)["row-0"][0].text == "a red bus number 0"
        assert why in server.bodies[1]["messages"][-1]["content"]
    with serving(lambda caption, count: (200, body, {})) as server:
        (candidate,) = edits(server.url, tmp_path / "never", row, rewrites=1)["row-0"]
        assert candidate.problem is not None and why in candidate.problem and server.asked.total() == 2


def test_read_edit_passes_over_what_stands_around_the_json():
    fenced = 'Here:\n```json\n{"caption": " a  bus ", "changed": "object", "why": 1}\n```'
    assert read_edit(Reply(fenced, 1, 1)) == Edit(caption="a bus", changed="object")
