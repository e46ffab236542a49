"""OPA-DPO's second winner comes through the making of negatives, which keeps one chosen response."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cwdpo.data.jsonl_dataset import StoredGroups
from cwdpo.data.schema import REJECTED, ImageRef, PromptGroup, Response, user_message
from cwdpo.files import write_jsonl
from cwdpo.run.run_rows import with_every_chosen
from tiny_training import fresh, rows, train_dpo


def _stored(path: Path, groups: list[PromptGroup]) -> StoredGroups:
    write_jsonl(path, (group.to_json() for group in groups))
    return StoredGroups(path, path.parent)


@pytest.mark.parametrize("left_out", [(), (0,), (1, 2), (3,)])
def test_chosen_responses_come_back_once(tmp_path: Path, left_out: tuple[int, ...]) -> None:
    gold, revised = Response("gold"), Response("revised", source="edit")
    data = [
        PromptGroup(
            name, (ImageRef(path="a.png"),), (user_message("?"),), (gold, revised, gold, Response("r", REJECTED))
        )
        for name in "abcd"
    ]
    negatives = [g.with_responses((gold, Response(f"own {g.id}", REJECTED, "sample"))) for g in data]
    kept = [g for i, g in enumerate(negatives) if i not in left_out]
    found = with_every_chosen(_stored(tmp_path / "groups.jsonl", kept), _stored(tmp_path / "data.jsonl", data))
    assert [[(r.role, r.text) for r in group.responses] for group in pickle.loads(pickle.dumps(found))] == [
        [("chosen", "gold"), ("chosen", "revised"), ("rejected", f"own {g.id}")] for g in kept
    ]


def test_opa_dpo_trains_on_both_winners(tmp_path: Path) -> None:
    """Two chosen responses and one rejected are two pairs, in the loss and in its mean."""
    groups = [
        g.with_responses((g.chosen, Response("a blue star above"), *g.by_role(REJECTED)[:1]))
        for g in rows(2, tmp_path, images=1, responses=2)
    ]
    trainer = train_dpo(*fresh(), groups, tmp_path / "run", objective="opa_dpo", max_steps=1)
    batch = trainer.data_collator(groups)["batch"]
    assert trainer.objective.counts(batch) == {"pairs": 4.0}
    assert [r.role for r in batch.groups[2].responses] == ["altered_chosen", "altered_chosen"]
