"""What an update draws among a prompt's candidates: shares of the moment, weights, the same for the same update."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from built_negatives import build as build_negatives
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.errors import RecipeError
from cwdpo.negatives.per_update_draw import MIN_WEIGHT, NegativeSampler, _draw, frontier
from cwdpo.recipe import SourceMix, Stage2Mix
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse
from cwdpo.scoring.reference import ReferenceCache
from tiny_runs import rows_of

FALLING = [{"at": 0.25, "beam": 3, "perturb": 1}, {"at": 0.75, "perturb": 5}]


def test_shares_of_a_moment_by_hand():
    mix = SourceMix.model_validate({"schedule": FALLING})
    assert [*mix.sources] == ["beam", "perturb"] and mix.pooled and mix.most == 1
    # before the first point and after the last they stay; points are brought to a sum of 1 first
    assert mix.shares_at(0) == mix.shares_at(0.25) == {"beam": 0.75, "perturb": 0.25}
    assert mix.shares_at(0.75) == mix.shares_at(1) == {"perturb": 1.0}
    # half way: beam (3/4 + 0) / 2, perturb (1/4 + 1) / 2
    assert mix.shares_at(0.5) == pytest.approx({"beam": 0.375, "perturb": 0.625})
    assert SourceMix(beam=3).shares_at(0.3) == {"dataset": 1, "beam": 3}


@given(st.floats(0, 1))
def test_shares_of_a_schedule_add_up_to_one(moment: float):
    mix = SourceMix.model_validate({"schedule": [*FALLING, {"at": 1, "edit": 7, "beam": 2}]})
    assert sum(mix.shares_at(moment).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("schedule", "what"),
    [
        ("[{at: 0, beam: 1}]", "has one point; give two or more"),
        ("[{at: 0.5, beam: 1}, {at: 0.5, other: 1}]", r"the points are at \[0.5, 0.5\]; `at` must grow"),
        ("[{at: 0, beam: 1}, {at: 1}]", "every share at 1 is 0"),
        ("[{at: 0, beam: 1}, {at: 2, other: 1}]", r"schedule.1.at` = 2: input should be less than or equal to 1"),
        (
            "[{at: 0, beem: 1}, {at: 1, other: 1}]",
            "unknown key `negatives.stage2.schedule.0.beem`; did you mean `beam`",
        ),
        ("[{beam: 1}, {at: 1, other: 1}]", r"schedule.0.at` = .*: field required"),
        ("[{at: 0, edit: 1}, {at: 1, other: 1}]", "the source edit needs negatives.editor.base_url"),
        ("beam", "negatives.stage2.schedule` = 'beam'"),
    ],
)
def test_a_schedule_that_is_none_is_refused(schedule: str, what: str):
    with pytest.raises(RecipeError, match=what) as caught:
        load_recipe(None, [f"negatives.stage2.schedule={schedule}"])
    assert "\n" not in str(caught.value)


def test_shares_beside_a_schedule_are_refused():
    with pytest.raises(RecipeError, match="sample = 2 stands beside a schedule"):
        load_recipe(
            None, ["negatives.stage2.schedule=[{at: 0, beam: 1}, {at: 1, other: 1}]", "negatives.stage2.sample=2"]
        )


def often(sources: Sequence[str], weights: Sequence[float], shares: dict[str, float], count: int = 1) -> list[float]:
    """How often each candidate is drawn."""
    chance, drawn = random.Random(0), Counter[int]()
    for _ in range(4000):
        drawn.update(_draw(sources, weights, shares, count, chance))
    return [drawn[i] / 4000 for i in range(len(sources))]


def test_odds_by_hand():
    # binomial(4000, p): standard deviation at most 0.008
    near = 0.03
    # shares 1 : 3 whatever the number of candidates of a source
    assert often(["a", "a", "b"], [1, 1, 1], {"a": 1, "b": 3}) == pytest.approx([1 / 8, 1 / 8, 3 / 4], abs=near)
    # weights tilt within a source and between sources: 0.5·1, 0.5·0.2, 1·0.6
    assert often(["a", "a", "b"], [1, 0.2, 0.6], {"a": 1, "b": 1}) == pytest.approx(
        [0.5 / 1.2, 0.1 / 1.2, 0.5], abs=near
    )
    # a source that the prompt has nothing of leaves its share to the others; no share at all is better than nothing
    assert often(["a", "c"], [1, 1], {"a": 1, "b": 9}) == [1, 0]
    assert often(["c", "d"], [1, 3], {"a": 1}) == pytest.approx([0.25, 0.75], abs=near)
    # two of three without replacement: the third is left out as often as it comes last
    assert often(["a", "a", "a"], [1, 1, 1], {"a": 1}, 2) == pytest.approx([2 / 3] * 3, abs=near)
    assert often(["a", "b"], [1, 1], {"a": 1}, 5) == [1, 1]


def encoded(number: int, sources: Sequence[str]) -> EncodedGroup:
    rejected = [EncodedResponse((1, 2), REJECTED, s, None, f"{number}-{i}") for i, s in enumerate(sources)]
    responses = (EncodedResponse((1,), CHOSEN, "dataset", None, f"{number}-gold"), *rejected)
    return EncodedGroup(f"row-{number}", "", (5,), {}, {}, responses)


def picked(batch: Batch) -> dict[str, list[str]]:
    return {g.id: [r.key for r in g.responses] for g in batch.groups}


def test_a_draw_depends_on_seed_update_and_prompt_alone():
    groups = [encoded(i, ["beam", "beam", "perturb", "perturb"]) for i in range(40)]
    mix = SourceMix.model_validate({"schedule": FALLING})
    picker = NegativeSampler(mix, seed=4)
    whole = picked(picker(Batch(tuple(groups)), 3, 10))
    assert all(len(keys) == 2 and keys[0].endswith("gold") for keys in whole.values())
    again = NegativeSampler(mix, seed=4)
    assert picked(again(Batch(tuple(groups[7:9])), 3, 10)) == {k: whole[k] for k in ("row-7", "row-8")}
    assert picked(picker(Batch(tuple(groups)), 4, 10)) != whole
    assert picked(NegativeSampler(mix, 5)(Batch(tuple(groups)), 3, 10)) != whole


def test_a_twin_with_altered_images_keeps_what_its_prompt_keeps():
    rejected = [EncodedResponse((1, i), REJECTED, "beam", None, f"{i}") for i in range(4)]
    group = EncodedGroup("row", "", (5,), {}, {}, (EncodedResponse((1,), CHOSEN, "dataset", None, "gold"), *rejected))
    twin = replace(group, altered=True, responses=tuple(replace(r, role=f"altered_{r.role}") for r in group.responses))
    one, other = NegativeSampler(SourceMix(candidates=4, per_prompt=2), 0)(Batch((group, twin)), 0, 1).groups
    assert len(one.responses) == 3 and [r.ids for r in one.responses] == [r.ids for r in other.responses]


def test_the_schedule_is_followed_over_the_updates():
    groups = tuple(encoded(i, ["beam", "perturb"]) for i in range(300))
    picker = NegativeSampler(SourceMix.model_validate({"schedule": [{"at": 0, "beam": 1}, {"at": 1, "perturb": 1}]}), 0)

    def beams(update: int) -> float:
        return sum(g.responses[1].source == "beam" for g in picker(Batch(groups), update, 5).groups) / 300

    # updates 0 to 4 of 5: shares 1, 3/4, 1/2, 1/4, 0; binomial(300, p) has a standard deviation below 0.03
    assert [beams(u) for u in range(5)] == [
        1,
        pytest.approx(0.75, abs=0.1),
        pytest.approx(0.5, abs=0.1),
        *[pytest.approx(0.25, abs=0.1), 0],
    ]
    assert picker(Batch(()), 0, 1).groups == ()


def test_frontier_prefers_negatives_at_the_floor(tmp_path: Path):
    cache = ReferenceCache(tmp_path / "logps.sqlite")
    # two tokens each: ℓ̄ of −3 (the floor), −1, −5, −20
    values = {"0-0": -3.0, "0-1": -1.0, "0-2": -5.0, "0-3": -20.0}
    cache.store({key: torch.tensor([v, v]) for key, v in values.items()})
    group = encoded(0, ["beam"] * 4)
    weights = frontier(cache, floor=-3.0, tau=1.0)(group.responses[1:])
    w = 1 / (1 + math.exp(-2))  # σ(±2) = 0.88 and 0.12: 4 · 0.88 · 0.12 = 0.42
    assert weights == pytest.approx([1, 4 * w * (1 - w), 4 * w * (1 - w), MIN_WEIGHT])
    mix = Stage2Mix(dataset=0, beam=1, candidates=4, curriculum="frontier")
    picker = NegativeSampler(mix, 0, frontier(cache, -3.0, 1.0))
    keys = Counter(picker(Batch((group,)), update, 2000).groups[0].responses[1].key for update in range(2000))
    total = sum(weights)
    assert [keys[k] / 2000 for k in values] == pytest.approx([x / total for x in weights], abs=0.05)


def rows(count: int) -> list[PromptGroup]:
    message = {"role": "user", "content": [{"type": "text", "text": "describe"}]}
    return [
        PromptGroup(
            f"row-{i}",
            (),
            (message,),
            (Response(f"A red car number {i} near a dog"), *(Response(f"no {i} {k}", REJECTED) for k in range(i))),
        )
        for i in range(count)
    ]


def test_candidates_are_kept_of_every_source(tmp_path: Path):
    def build(folder: str, **mix: Any) -> dict[str, Counter[str]]:
        chosen = SourceMix.model_validate({"per_prompt": 2, **mix})
        found = build_negatives(rows(5), chosen, tmp_path / folder)
        counted = {g.id: Counter(r.source for r in g.by_role(REJECTED)) for g in found.groups}
        assert sum(map(Counter.total, counted.values())) == sum(found.counts.values())
        return counted

    three = build("a", perturb=1, candidates=3)
    assert [three[f"row-{i}"]["dataset"] for i in range(5)] == [0, 1, 2, 3, 3]  # up to three of each
    assert {c["perturb"] for c in three.values()} == {3}
    two = build("b", schedule=[{"at": 0, "perturb": 1}, {"at": 1, "other": 1}])
    assert all(c == {"perturb": 2, "other": 2} for c in two.values())
    dropped = rows_of(tmp_path / "a" / "dropped.jsonl")
    assert dropped == []
