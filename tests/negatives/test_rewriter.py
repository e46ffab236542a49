"""Rewrites by a language model behind a server that misbehaves on purpose."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from bad_server import Answer, completion, serving
from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.requests import UnusableAnswer
from cwdpo.data.schema import PromptGroup, Response, user_message
from cwdpo.errors import RecipeError
from cwdpo.negatives.llm_rewrites import require_change, rewrite_by_llm
from cwdpo.recipe import EditorSection
from cwdpo.recipe.load_recipe import load_recipe


def rows(*texts: str) -> list[PromptGroup]:
    return [PromptGroup(f"row-{i}", (), (user_message("describe", 0),), (Response(t),)) for i, t in enumerate(texts)]


def answer(caption: str) -> Answer:
    return 200, completion(json.dumps({"caption": caption})), {}


def rewrite(url: str, folder: Path, groups: list[PromptGroup], kind: str = "chosen_paraphrase") -> dict[str, str]:
    settings = EditorSection(base_url=url, model="m", timeout=5.0, concurrency=3, attempts=2, rewrites=1)
    return rewrite_by_llm(LanguageModel(settings, folder / "rewrites.jsonl"), groups, kind)


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
        found = rewrite(server.url, tmp_path, groups)
        assert found == {"row-0": "an automobile of red colour"}
        assert server.asked == {"a red car": 2, "a dog": 2}
        assert "say an image caption in other words" in server.bodies[0]["messages"][0]["content"]
        assert server.bodies[0]["response_format"]["json_schema"]["name"] == "answer"
        assert rewrite(server.url, tmp_path, groups) == found
        assert server.asked == {"a red car": 2, "a dog": 2}
    assert rewrite("http://127.0.0.1:9/v1", tmp_path, groups) == found


@pytest.mark.parametrize(
    ("new", "limits", "problem"),
    [
        ("A red car, beside a small dog.", {}, "nothing was changed"),
        ("A red car, beside a small dog.", {"fewest": 0}, ""),
        ("a red car beside a small cat", {"most": 3}, ""),
        ("a man on a boat at sea", {"most": 3}, "6 words were changed, at most 3 may be"),
        ("a car", {}, "the caption has 2 words instead of 7"),
        ("!?", {}, "the caption has no words"),
        ("a small dog next to a red car", {}, ""),
        ("a red car beside a small cat", {"fewest": 2.1}, "1 of 7 words were changed, which is too few"),
        ("a blue boat behind a large cat", {"fewest": 2.1}, ""),
        ("a dog that sits by a car", {"unlike": ["A dog that sits by a car."]}, "the caption equals a right one"),
    ],
)
def test_which_changes_are_taken(new: str, limits: dict[str, Any], problem: str) -> None:
    try:
        require_change(new, "a red car beside a small dog", **limits)
    except UnusableAnswer as error:
        assert str(error) == problem and error.text == new
    else:
        assert not problem


def test_the_recipe_asks_for_an_endpoint() -> None:
    with pytest.raises(RecipeError, match=r"probes.rewriter: editor needs negatives.editor.base_url"):
        load_recipe(base={"probes": {"rewriter": "editor"}})
    with pytest.raises(RecipeError, match=r"probes.digest is the content of probes.path"):
        load_recipe(base={"probes": {"digest": "ab"}})
