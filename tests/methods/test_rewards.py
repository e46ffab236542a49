"""Rewards: CIDEr-D against pycocoevalcap, exact correctness, and what is refused."""

from __future__ import annotations

import random

import pytest

from cwdpo.data.schema import PromptGroup, Response, user_message
from cwdpo.errors import DataError
from cwdpo.evaluation.metrics.cider import cider
from cwdpo.objectives.rewards import CiderReward, exact_reward, reward_for
from cwdpo.scenes.grammar import paraphrases, sample_caption
from cwdpo.scenes.scene_rows import sample_scenes
from cwdpo.scoring.batch import EncodedGroup


def encoded(references: tuple[str, ...] = (), **facts: object) -> EncodedGroup:
    return EncodedGroup("r", "rows.jsonl:1", (1,), {}, {}, (), references=references, facts=facts)


def test_cider_is_pycocoevalcap_s() -> None:
    """Every row's CIDEr-D is what it is within the evaluation of all rows."""
    rng = random.Random(0)
    scenes = [scene for scene, _ in zip(sample_scenes("train", 0), range(30), strict=False)]
    gold = [[c.text for c in paraphrases(scene, rng, 5)] for scene in scenes]
    gold[3] = gold[3][:1]
    said = [sample_caption(scenes[i - i % 2], rng).text for i in range(30)]
    said[5], said[7], said[8] = "", "a", "zebra " * 40
    want = cider(said, gold)[1]
    reward = CiderReward(gold)
    found = [reward(encoded(tuple(g)), [s])[0] for g, s in zip(gold, said, strict=True)]
    assert [100 * value for value in found] == pytest.approx(want, abs=1e-9)
    assert max(want) > 300 and want[5] == want[8] == 0


def test_cider_needs_a_corpus() -> None:
    with pytest.raises(DataError, match=r"^1 rows with references: a reward by CIDEr needs 2 or more"):
        CiderReward([["a cat"], []])
    reward = CiderReward([["a cat"], ["a dog"]])
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: has no references and no chosen response"):
        reward(encoded(), ["a cat"])


def test_exact() -> None:
    scene = next(iter(sample_scenes("train", 1)))
    right = sample_caption(scene, random.Random(1)).text
    group = encoded(scene=scene.to_json())
    assert exact_reward(group, [right, right + " and", ""]) == [1.0, 0.0, 0.0]
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: has no scene"):
        exact_reward(encoded(), [right])


def test_auto() -> None:
    """Exact where every row has a scene; else CIDEr, against the chosen response where a row has no references."""
    rows = [PromptGroup(f"{i}", (), (user_message("?", 0),), (Response(f"word{i} x"),)) for i in range(2)]
    reward = reward_for("auto", rows)
    assert isinstance(reward, CiderReward)
    assert reward(encoded(("word0 x",)), ["word0 x", "x"]) == pytest.approx([5.0, 0.0])  # n-grams of length 1 and 2
    scenes = [PromptGroup("s", (), (), (), facts={"scene": {}})]
    assert reward_for("auto", scenes) is exact_reward
    assert reward_for("exact", rows) is exact_reward
    assert isinstance(reward_for("cider", [*rows, *scenes]), CiderReward)
