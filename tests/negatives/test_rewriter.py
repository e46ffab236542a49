"""Rewrites by a language model behind a server that misbehaves on purpose."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from bad_server import Answer, completion, serving
from cwdpo.chat.messages import UnusableAnswer
from cwdpo.data.schema import PromptGroup, Response, user_message
from cwdpo.errors import RecipeError
from cwdpo.negatives.llm_rewrites import LLMRewriter, require_rewrite
from cwdpo.recipe import EditorSection
from cwdpo.recipe.load_recipe import load_recipe


def rows(*texts: str) -> list[PromptGroup]:
    return [PromptGroup(f"row-{i}", (), (user_message("describe", 0),), (Response(t),)) for i, t in enumerate(texts)]


def answer(caption: str) -> Answer:
    return 200, completion(json.dumps({"caption": caption})), {}


def rewriter(url: str, folder: Path) -> LLMRewriter:
    settings = EditorSection(base_url=url, model="m", timeout=5.0, concurrency=3, attempts=2, rewrites=1)
    return LLMRewriter(settings, folder)


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


@pytest.mark.parametrize(
    ("new", "how", "problem"),
    [
        ("A red car, beside a small dog.", "paraphrase", "nothing was changed"),
        ("A red car, beside a small dog.", "correction", ""),
        ("a red car beside a small cat", "correction", ""),
        ("a man on a boat at sea", "correction", "6 of 7 words were changed"),
        ("a car", "paraphrase", "the caption has 2 words instead of 7"),
        ("a small dog next to a red car", "paraphrase", ""),
        # One of seven words is another: 14 % where 30 % are wanted. Four of seven: fine.
        ("a red car beside a small cat", "form", "the caption is about the same things"),
        ("a blue boat behind a large cat", "form", ""),
        ("a dog that sits by a car", "form", "the caption is right of the same picture"),
    ],
)
def test_which_rewrites_are_taken(new: str, how: str, problem: str) -> None:
    try:
        require_rewrite(new, "a red car beside a small dog", ["a dog that sits by a car"], how)
    except UnusableAnswer as error:
        assert str(error) == problem
    else:
        assert not problem


def test_the_recipe_asks_for_an_endpoint() -> None:
    with pytest.raises(RecipeError, match=r"probes.rewriter: editor needs negatives.editor.base_url"):
        load_recipe(base={"probes": {"rewriter": "editor"}})
    with pytest.raises(RecipeError, match=r"probes.digest is the content of probes.path"):
        load_recipe(base={"probes": {"digest": "ab"}})
