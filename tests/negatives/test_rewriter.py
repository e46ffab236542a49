"""Rewrites by a language model behind a server that misbehaves on purpose."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from bad_server import Answer, completion, serving
from cwdpo.chat.client import ServiceError
from cwdpo.data.schema import PromptGroup, Response, user_message
from cwdpo.errors import RecipeError
from cwdpo.negatives.llm_rewrites import Rewriter, rewrite_problem
from cwdpo.recipe import EditorSection
from cwdpo.recipe.load_recipe import load_recipe


def rows(*texts: str) -> list[PromptGroup]:
    return [PromptGroup(f"row-{i}", (), (user_message("describe", 0),), (Response(t),)) for i, t in enumerate(texts)]


def answer(caption: str) -> Answer:
    return 200, completion(json.dumps({"caption": caption})), {}


def rewriter(url: str, folder: Path) -> Rewriter:
    settings = EditorSection(base_url=url, model="m", timeout=5.0, concurrency=3, attempts=2, rewrites=1)
    return Rewriter(settings, folder, pause=0.01)


def test_answers_are_checked_and_kept(tmp_path: Path) -> None:
    """The first answer about the car is unchanged and is asked again; the dog's stays bad; nothing is asked twice."""
    lock, count = threading.Lock(), {"car": 0}

    def plan(caption: str, times: int) -> Answer:
        if "dog" in caption:
            return 200, completion("no JSON at all"), {}
        with lock:
            count["car"] += 1
        return answer("a red car" if times == 1 else "an automobile of red colour")

    groups = rows("a red car", "a dog")
    with serving(plan) as server:
        found = rewriter(server.url, tmp_path).rewrite(groups, "chosen_paraphrase")
        assert found == {"row-0": "an automobile of red colour"}
        assert server.asked == {"a red car": 2, "a dog": 2}
        assert "say an image caption in other words" in server.bodies[0]["messages"][0]["content"]
        assert server.bodies[0]["response_format"]["json_schema"]["name"] == "rewrite"
        assert rewriter(server.url, tmp_path).rewrite(groups, "chosen_paraphrase") == found
        assert server.asked == {"a red car": 2, "a dog": 2}
    assert rewriter("http://127.0.0.1:9/v1", tmp_path).rewrite(groups, "chosen_paraphrase") == found


def test_a_server_that_fails_is_said(tmp_path: Path) -> None:
    with (
        serving(lambda caption, times: (503, {"error": "busy"}, {})) as server,
        pytest.raises(ServiceError, match="503"),
    ):
        rewriter(server.url, tmp_path).rewrite(rows("a red car"), "chosen_form")


def test_what_cannot_be_used() -> None:
    old = "a red car beside a small dog"
    assert rewrite_problem("A red car, beside a small dog.", old, [old], "paraphrase") == "nothing was changed"
    assert rewrite_problem("a car", old, [old], "paraphrase") == "the caption has 2 words instead of 7"
    assert rewrite_problem("a small dog next to a red car", old, [old], "paraphrase") is None
    # One of seven words is another: 14 % where 30 % are wanted. Four of seven: fine.
    assert rewrite_problem("a red car beside a small cat", old, [old], "form") == "the caption is about the same things"
    assert rewrite_problem("a blue boat behind a large cat", old, [old], "form") is None
    gold = "a dog that sits by a car"
    assert rewrite_problem(gold, old, [gold], "form") == "the caption is right of the same picture"


def test_the_recipe_asks_for_an_endpoint() -> None:
    with pytest.raises(RecipeError, match=r"probes.rewriter: editor needs negatives.editor.base_url"):
        load_recipe(base={"probes": {"rewriter": "editor"}})
    with pytest.raises(RecipeError, match=r"probes.digest is the content of probes.path"):
        load_recipe(base={"probes": {"digest": "ab"}})
