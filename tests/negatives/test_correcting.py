"""The model's own answers, corrected: who gets a second chosen response, and what is asked of an editor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from bad_server import Answer, completion, serving
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response, user_message
from cwdpo.errors import DataError
from cwdpo.negatives.generating_model import PolicyJob
from cwdpo.negatives.opa_correction import Corrections, correct_answers
from cwdpo.recipe import CorrectionSection, EditorSection
from cwdpo.scenes.world import Scene, Shape

SCENE = Scene((Shape("circle", "red", "large", 0, 0), Shape("square", "blue", "small", 3, 0)))


class Says:
    """A policy that answers by heart, and counts the prompts."""

    digest = "by heart"

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers, self.prompts = answers, 0

    def write(self, job: PolicyJob) -> list[list[str]]:
        self.prompts += len(job.prompts)
        return [[self.answers[g.id]] for g in job.prompts]


def rows(names: Sequence[str], gold: str, **facts: Any) -> list[PromptGroup]:
    """Rows with a chosen response and a rejected one of the data's."""
    responses = (Response(gold), Response("something else", REJECTED))
    return [PromptGroup(n, (), (user_message(f"describe {n}", 0),), responses, facts=facts) for n in names]


def correct(groups: list[PromptGroup], says: Says, folder: Path, by: str, url: str = "") -> Corrections:
    settings = CorrectionSection.model_validate({"by": by, "max_new_tokens": 24, "batch_size": 2})
    editor = EditorSection(base_url=url, model="m", timeout=5.0, attempts=2, rewrites=1)
    return correct_answers(groups, settings, seed=0, folder=folder, policy=cast("Any", says), editor=editor)


def test_on_scenes(tmp_path: Path) -> None:
    says = Says(
        {
            "wrong": "a green disc left of a small blue box",
            "right": "a large red circle left of a blue box",
            "mumbled": "a red red red",
        }
    )
    groups = rows(list(says.answers), "a red circle left of a blue square", scene=SCENE.to_json())
    found = correct(groups, says, tmp_path, "exact")
    assert found.counts == {"corrected": 1, "right": 1, "lost": 1}
    wrong, right, mumbled = found.groups
    assert [(r.role, r.source, r.text) for r in wrong.responses] == [
        (CHOSEN, "dataset", "a red circle left of a blue square"),
        (CHOSEN, "corrected", "a red disc left of a small blue box"),
        (REJECTED, "own", "a green disc left of a small blue box"),
    ]
    assert [r.source for g in (right, mumbled) for r in g.responses] == ["dataset", "dataset"]  # the chosen ones alone
    assert correct(groups, says, tmp_path, "exact") == found
    assert says.prompts == 3  # answered once


def test_exact_is_for_scenes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"this row has no scene; use by: editor"):
        correct(rows(["a"], "a dog"), Says({"a": "a cat"}), tmp_path, "exact")


def test_by_an_editor(tmp_path: Path) -> None:
    """The car's is put right, the dog's was right, the boat's comes back as another caption twice and is lost."""
    says = Says({"car": "a blue car on a road", "dog": "a dog on grass", "boat": "a boat at sea"})
    groups = rows(list(says.answers), "a red car on a road by a dog on grass and a boat")

    def plan(caption: str, times: int) -> Answer:
        said = {"a blue car on a road": "a red car on a road", "a dog on grass": "a dog on grass"}
        return 200, completion(json.dumps({"caption": said.get(caption, "a town seen from far above at night")})), {}

    with serving(plan) as server:
        found = correct(groups, says, tmp_path, "editor", server.url)
        assert found.counts == {"corrected": 1, "right": 1, "lost": 1}
        assert [r.text for r in found.groups[0].by_role(CHOSEN)][1:] == ["a red car on a road"]
        assert server.asked == {"a blue car on a road": 1, "a dog on grass": 1, "a boat at sea": 2}
        content = server.bodies[0]["messages"][1]["content"]
        assert "Right captions of the picture:\n- a red car on a road by a dog on grass and a boat" in content
        assert correct(groups, says, tmp_path, "editor", server.url) == found
        assert sum(server.asked.values()) == 4  # what was answered is not asked again
