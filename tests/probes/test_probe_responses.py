"""Further kinds of response: what they are made of, and that draws are their own."""

from __future__ import annotations

import pytest

from cwdpo.data.schema import PromptGroup, Response
from cwdpo.errors import DataError
from cwdpo.probes.probe_responses import KINDS, with_kinds


def group(name: str, text: str, references: tuple[str, ...] = ()) -> PromptGroup:
    return PromptGroup(name, (), (), (Response(text), Response("wrong", "rejected")), references)


TEST = [group("a", "a red star above a blue line"), group("b", "two dots"), group("c", "two dots", ("a c",))]
TRAIN = [group("t0", "one two three four five six seven"), group("t1", "x y"), group("t2", "a c"), group("t3", "only")]


def texts(groups: list[PromptGroup], kind: str) -> list[str]:
    return [r.text for g in groups for r in g.by_role(kind)]


def test_what_the_kinds_are() -> None:
    found = with_kinds(TEST, list(KINDS), train=TRAIN, written={"own": {"a": "mine", "b": ""}}, seed=1)
    assert [g.responses[:2] for g in found] == [g.responses for g in TEST]
    assert texts(found, "own") == ["mine"]  # no answer, no response
    train = {"one two three four five six seven", "x y", "a c", "only"}
    assert set(texts(found, "other_train")) <= train
    assert texts(found, "other_train")[2] != "a c"  # a right answer to c is no other answer
    assert texts(found, "other_test")[0] == "two dots"
    assert texts(found, "other_test")[1] == "a red star above a blue line"  # c's gold is b's own
    # Seven words: t0 alone has as many. Two words: x y, or a c where that is not right.
    assert texts(found, "random")[0] == TRAIN[0].chosen.text
    assert texts(found, "random")[1] in ("x y", "a c")
    assert texts(found, "random")[2] == "x y"
    for g, mixed, kind in ((found[0], texts(found, "shuffled")[0], "chosen"), (found[0], "", "random")):
        other = mixed or texts(found, "random_shuffled")[0]
        assert sorted(other.split()) == sorted(g.by_role(kind)[0].text.split())
        assert other != g.by_role(kind)[0].text
    assert texts(found, "shuffled")[1] == "dots two"
    assert texts(found, "random_shuffled")[2] == "y x"


def test_draws() -> None:
    """The same seed draws the same; a kind's draw does not depend on the other kinds or the order of prompts."""
    many = [group(f"g{i}", " ".join(f"w{i}{j}" for j in range(8))) for i in range(12)]
    first = with_kinds(many, ["other_test", "shuffled"], seed=0)
    again = with_kinds(many[::-1], ["shuffled", "other_test"], seed=0)[::-1]
    assert texts(first, "shuffled") == texts(again, "shuffled")
    alone = with_kinds(many, ["other_test"], seed=0)
    assert texts(first, "other_test") == texts(alone, "other_test")
    assert texts(first, "shuffled") != texts(with_kinds(many, ["shuffled"], seed=1), "shuffled")


def test_what_is_there_stays() -> None:
    given = [TEST[0].with_responses([*TEST[0].responses, Response("given", "random")]), *TEST[1:]]
    assert texts(with_kinds(given, ["random"], train=TRAIN), "random")[0] == "given"
    assert with_kinds(TEST, []) == TEST


def test_mistakes() -> None:
    with pytest.raises(DataError, match="probe kind 'odd' is unknown; take some of own, chosen_paraphrase"):
        with_kinds(TEST, ["odd"])
    with pytest.raises(DataError, match="no other prompt to take the probe kind 'other_train'"):
        with_kinds(TEST, ["other_train"])
    with pytest.raises(DataError, match="'other_test'"):
        with_kinds(TEST[1:], ["other_test"])
