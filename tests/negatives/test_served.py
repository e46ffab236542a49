"""On-policy negatives from servers that misbehave: several at once, nothing asked twice, clear errors."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from bad_server import Answer, BadServer, serving
from built_negatives import build, propose
from cwdpo.chat.client import ServiceError
from cwdpo.data.schema import REJECTED, ImageRef, PromptGroup, Response
from cwdpo.errors import RecipeError
from cwdpo.recipe import SourceMix
from cwdpo.recipe.load_recipe import load_recipe

KEY = "sk-very-secret-9876543210"
NOBODY: Any = SimpleNamespace(digest="content")
"""A policy that is only served."""


def rows(count: int, folder: Path) -> list[PromptGroup]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "red.png"
    if not path.exists():
        Image.new("RGB", (9, 5), "red").save(path)
    found: list[PromptGroup] = []
    for i in range(count):
        parts = [{"type": "image"}, {"type": "text", "text": f"describe {i}"}]
        messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": parts})
        found.append(PromptGroup(f"row-{i}", (ImageRef(path=str(path)),), messages, (Response(f"car {i}"),)))
    return found


def served(
    servers: list[BadServer],
    folder: Path,
    groups: list[PromptGroup],
    name: str = "sample",
    notes: list[str] | None = None,
    **settings: Any,
) -> dict[str, list[str]]:
    generator = {"base_urls": [s.url for s in servers], "model": "policy", "attempts": 4, "timeout": 5.0} | settings
    mix = {"max_new_tokens": 7, "generator": generator} | ({"beam_width": 3} if name == "beam" else {})
    told: dict[str, Any] = {"policy": NOBODY, "note": None if notes is None else notes.append}
    found = propose(name, groups, 1, folder, mix, **told)
    return {identity: [c.text for c in candidates] for identity, candidates in found.items()}


def answers(*texts: Any) -> dict[str, Any]:
    choices = [{"message": {"role": "assistant", "content": t}, "finish_reason": "stop"} for t in texts]
    return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 9}}


def good(prompt: str, count: int = 1) -> Answer:
    return 200, answers(*(f" {prompt} text {k}" for k in range(4))), {}


def expected(count: int) -> dict[str, list[str]]:
    return {f"row-{i}": [f"describe {i} text {k}" for k in range(4)] for i in range(count)}


def test_servers_take_turns_and_see_the_picture(tmp_path: Path):
    def plan(prompt: str, count: int) -> Answer:
        time.sleep(0.05)
        return good(prompt)

    notes, groups = list[str](), rows(12, tmp_path)
    with serving(plan) as one, serving(plan) as other:
        assert served([one, other], tmp_path / "n", groups, notes=notes, concurrency=4) == expected(12)
        assert one.asked.total() == other.asked.total() == 6  # in turn
        assert 1 < one.most_under_way + other.most_under_way <= 4 * 2
        body = one.bodies[0]
        assert body["model"] == "policy" and body["max_tokens"] == 7 and body["n"] == 4
        assert body["temperature"] == 1.0 and body["top_p"] == 1.0 and isinstance(body["seed"], int)
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        url = body["messages"][1]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        assert picture.size == (9, 5) and picture.getpixel((0, 0)) == (255, 0, 0)
        # again, through one of the servers and by other ways: nothing is asked
        assert served([one], tmp_path / "n", groups, concurrency=1) == expected(12)
        assert one.asked.total() + other.asked.total() == 12
        # another model, or beam in place of sample, is another thing
        served([one], tmp_path / "n", groups[:1], model="another")
        assert one.asked.total() == 7
    assert len(notes) == 1 and notes[0].startswith("sample: 12 requests to policy at http://127.0.0.1:")


def test_beam_search_is_asked_for_and_missed(tmp_path: Path):
    groups = rows(2, tmp_path)
    with serving(good) as server:
        assert served([server], tmp_path / "n", groups, "beam") == {k: v[:3] for k, v in expected(2).items()}
        assert server.bodies[0]["use_beam_search"] is True and server.bodies[0]["n"] == 3
    with (
        serving(lambda prompt, count: (200, answers("one"), {})) as server,
        pytest.raises(ServiceError, match=r"1 of 3 hypotheses came back; the server does no beam search \(vLLM does\)"),
    ):
        served([server], tmp_path / "m", groups, "beam")


def test_a_server_that_gives_one_sample_a_request_is_asked_on(tmp_path: Path):
    with serving(lambda prompt, count: (200, answers(f"text {count}"), {})) as server:
        found = served([server], tmp_path / "n", rows(1, tmp_path))
        assert found == {"row-0": ["text 1", "text 2", "text 3", "text 4"]}
        assert [b["n"] for b in server.bodies] == [4, 3, 2, 1] and len({b["seed"] for b in server.bodies}) == 4


TROUBLES: dict[str, Answer] = {
    "busy": (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
    "broken": (500, b"oops", {}),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_another_server_stands_in_for_one_in_trouble(trouble: str, tmp_path: Path):
    status, body, headers = TROUBLES[trouble]
    with serving(lambda prompt, count: (status, body, dict(headers))) as bad, serving(good) as fine:
        assert served([bad, fine], tmp_path / "n", rows(4, tmp_path), concurrency=1) == expected(4)
        assert fine.asked.total() == 4 and bad.asked.total() == 4


def test_a_recipe_with_servers_loads_no_model(tmp_path: Path):
    groups = rows(3, tmp_path / "images")
    with serving(good) as server:
        generator = {"base_urls": [server.url], "model": "policy"}
        mix = SourceMix.model_validate({"dataset": 0, "beam": 1, "sample": 1, "beam_width": 3, "generator": generator})
        found = build(groups, mix, tmp_path / "n", NOBODY)
    assert sum(found.counts.values()) == 3 and set(found.counts) <= {"beam", "sample"}
    assert all(r.text.startswith("describe") for g in found.groups for r in g.by_role(REJECTED))


def test_recipe_mistakes():
    for change, what in (
        (
            "negatives.stage2.generator={base_urls: [http://me:secret@host/v1], model: m}",
            "without user, password or query",
        ),
        ("negatives.stage2.generator={base_urls: [http://host/v1]}", "needs generator.model"),
        ("negatives.stage2.generator={base_url: http://host/v1}", "did you mean `base_urls`"),
        (f"negatives.stage2.generator.key_variable={KEY}", "must be the name of an environment variable"),
    ):
        with pytest.raises(RecipeError, match=what) as caught:
            load_recipe(None, [change])
        assert "secret" not in str(caught.value)
