"""Win rates by hand; a judge that is fair, biased, unreadable, dear, or interrupted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bad_server import Answer, completion, serving
from cwdpo.chat.client import ServiceError
from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.requests import Reply
from cwdpo.cli.app import app
from cwdpo.data import DataSource, load_groups
from cwdpo.data.schema import PromptGroup, Response, user_message
from cwdpo.errors import DataError, RecipeError
from cwdpo.evaluation.win_rates import by_cider, by_judge, by_scenes, read_opinion, win_rate
from cwdpo.files import read_jsonl, write_jsonl
from cwdpo.recipe import JudgeSection
from cwdpo.scenes.scene_rows import write_rows

GROUPS = [PromptGroup(f"p{i}", (), (user_message("what?", 0),), (Response("gold"),)) for i in range(4)]
GOLD = [["a dog runs", "a brown dog"]] * 4
GOOD = [f"good caption {i}" for i in range(4)]
POOR = [f"poor caption {i}" for i in range(3)] + ["good caption 3"]


def says(better: str) -> Answer:
    return 200, completion(json.dumps({"better": better})), {}


def fair(first: str, count: int = 1) -> Answer:
    return says("1" if "good" in first else "2")


def judge(url: str, folder: Path, notes: list[str] | None = None, **settings: Any) -> LanguageModel[JudgeSection]:
    values = {"base_url": url, "model": "judge", "timeout": 5.0, "concurrency": 3, "attempts": 2} | settings
    return LanguageModel(JudgeSection(**values), folder / "judge.jsonl", note=None if notes is None else notes.append)


def test_the_rate_by_hand() -> None:
    # 2 wins, a tie, a loss: 2.5 of 4. One nobody can say is left out.
    found = win_rate([1.0, 1.0, 0.5, 0.0, None])
    assert (found["wins"], found["ties"], found["losses"], found["unread"], found["pictures"]) == (2, 1, 1, 1, 5)
    assert found["win_rate"] == 0.625 and found["low"] < 0.625 < found["high"]
    # All won: Wilson's interval, n/(n + z²) to 1; all tied: none.
    assert (win_rate([1.0] * 3)["low"], win_rate([1.0] * 3)["high"]) == pytest.approx((3 / 6.8415, 1), abs=1e-4)
    assert (win_rate([0.5] * 3)["low"], win_rate([0.5] * 3)["high"]) == (None, None)
    with pytest.raises(DataError, match="pair"):
        win_rate([None, None])


def test_by_cider() -> None:
    gold = [["a dog runs on grass"], ["a cat sleeps in a bed"], ["two men ride"]]
    verdicts, rows = by_cider(
        ["a dog runs on grass", "a man", "two men ride"], ["a dog", "a cat sleeps", "Two men ride."], gold, "words"
    )
    assert verdicts == [1.0, 0.0, 0.5]
    assert rows[0]["cider_a"] > rows[0]["cider_b"] and rows[2]["cider_a"] == pytest.approx(rows[2]["cider_b"])


def test_by_scenes(tmp_path: Path) -> None:
    write_rows(tmp_path, 3, 0, "test")
    groups = load_groups(DataSource(path=tmp_path / "test.jsonl")).groups
    right = [g.references[1] for g in groups]
    wrong = [g.by_role("rejected")[0].text for g in groups]
    assert by_scenes(groups, right, [wrong[0], right[1], wrong[2]])[0] == [1.0, 0.5, 1.0]
    assert by_scenes(groups, wrong, [wrong[0], right[1], "?"])[0] == [0.5, 0.0, 0.5]
    with pytest.raises(DataError, match="scene"):
        by_scenes(GROUPS, GOOD, POOR)


@pytest.mark.parametrize(
    ("text", "opinion"),
    [
        ('{"better": "1"}', "1"), ('Well: {"better": 2} it is', "2"), ('{"better": "Tie"}', "tie"),
        ('{"better": "A"}', None), ("1", None), ('{"better": ', None), ("", None), ("[1]", None),
    ],
)  # fmt: skip
def test_opinions(text: str, opinion: str | None) -> None:
    assert read_opinion(Reply(text, 1, 1)) == opinion


def test_a_fair_judge(tmp_path: Path) -> None:
    notes: list[str] = []
    with serving(fair) as server:
        verdicts, rows = by_judge(judge(server.url, tmp_path, notes), GROUPS, GOOD, POOR, GOLD)
        assert verdicts == [1.0, 1.0, 1.0, 0.5]
        assert rows[0] == {"a_first": "1", "b_first": "2"} and rows[3] == {"a_first": None, "b_first": None}
        assert sum(server.asked.values()) == 6  # equal captions are not asked about
        body = server.bodies[0]
        assert body["temperature"] == 0 and body["response_format"]["type"] == "json_schema"
        assert body["messages"][1]["content"].endswith("- a dog runs\n- a brown dog")
        again, _ = by_judge(judge(server.url, tmp_path, notes), GROUPS, GOOD, POOR, GOLD)
        assert again == verdicts and sum(server.asked.values()) == 6
        assert by_judge(judge(server.url, tmp_path), GROUPS, POOR, GOOD, GOLD)[0] == [0.0, 0.0, 0.0, 0.5]
        assert sum(server.asked.values()) == 6  # the same pairs in the same two orders
    assert len(notes) == 1 and "judge: 6 requests to judge at http://127.0.0.1" in notes[0]


@pytest.mark.parametrize(("better", "verdict"), [("1", 0.5), ("2", 0.5), ("tie", 0.5), ("none", None)])
def test_a_judge_that_does_not_look(better: str, verdict: float | None, tmp_path: Path) -> None:
    with serving(lambda *_: says(better)) as server:
        assert by_judge(judge(server.url, tmp_path), GROUPS[:2], GOOD[:2], POOR[:2], GOLD[:2])[0] == [verdict] * 2


def test_what_was_answered_is_kept(tmp_path: Path) -> None:
    def failing(first: str, count: int) -> Answer:
        return fair(first) if re.search("[01]$", first) else (400, {"error": {"message": "no"}}, {})

    with serving(failing) as server:
        with pytest.raises(ServiceError, match=r"judge http://127.*400.*structured"):
            by_judge(judge(server.url, tmp_path, concurrency=1), GROUPS, GOOD, POOR, GOLD)
        kept = len(list(read_jsonl(tmp_path / "judge.jsonl")))
        assert kept >= 1
        server.plan = fair
        server.asked.clear()
        assert by_judge(judge(server.url, tmp_path), GROUPS, GOOD, POOR, GOLD)[0] == [1.0, 1.0, 1.0, 0.5]
        assert sum(server.asked.values()) == 6 - kept


def test_the_cap_of_a_judge(tmp_path: Path) -> None:
    prices = {"price_input": 1000.0, "price_output": 1000.0}  # about .2 a request; the server counts .12
    with serving(fair) as server:
        with pytest.raises(ServiceError, match=r"judge\.max_cost = 0\.5"):
            by_judge(judge(server.url, tmp_path, max_cost=0.5, **prices), GROUPS, GOOD, POOR, GOLD)
        assert not server.asked
        dear = judge(server.url, tmp_path, max_cost=100, **prices)
        by_judge(dear, GROUPS, GOOD, POOR, GOLD)
        assert dear.spent == pytest.approx(6 * 0.12)


def test_the_command(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 6, 0, "test")
    right = [{"id": row["id"], "caption": row["references"][0]} for row in rows]
    wrong = [{"id": row["id"], "caption": row["responses"][1]["text"]} for row in rows]
    for name, captions in (("a", right), ("b", [*wrong[:4], *right[4:]])):
        write_jsonl(tmp_path / f"{name}.jsonl", captions)
    argv = ["winrate", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--data", str(tmp_path / "test.jsonl")]

    def call(*more: str) -> tuple[str, dict[str, Any]]:
        out = tmp_path / "out"
        done = CliRunner().invoke(app, [*argv, "--out", str(out), *more])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return " ".join(done.output.split()), json.loads((out / "winrate.json").read_text())

    text, found = call("--by", "scenes")
    assert "A wins 83.3% 95 %" in text and "6 pictures: 4 wins, 2 ties (half each), 0 losses" in text
    assert (found["by"], found["win_rate"]) == ("scenes", 5 / 6)
    assert call("--tokenizer", "words")[1]["wins"] == 4
    first = {row["caption"] for row in right}

    def knows(caption: str, count: int) -> Answer:
        return says("1" if caption.removeprefix("Caption 1: ") in first else "2")

    with serving(knows) as server:
        text, found = call("--by", "judge", "--judge-url", server.url, "--judge-model", "big", "--set", "concurrency=2")
        assert "big: the same in both orders 100.0% of 4 pairs; the first shown 50.0%; 0 pairs unread" in text
        assert (found["wins"], found["ties"], found["judge"]) == (4, 2, "big")
    shown = list(read_jsonl(tmp_path / "out" / "rows.jsonl"))
    assert shown[0]["verdict"] == 1.0 and shown[0]["a"] == right[0]["caption"] and shown[0]["a_first"] == "1"
    for more, told in (
        (["--by", "judge"], "judge: judge needs base_url and model"),
        (["--judge-model", "x"], "asks no judge; leave out model"),
        (["--by", "judge", "--set", "modle=x"], "unknown key `modle`; did you mean `model`"),
        (["--by", "judge", "--judge-model", "x", "--judge-url", "localhost"], "base_url must be like http"),
    ):
        with pytest.raises(RecipeError, match=told):
            call(*more)
