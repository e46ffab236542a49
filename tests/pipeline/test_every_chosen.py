"""OPA-DPO's second winner comes through the making of negatives, which keeps one chosen response."""

from __future__ import annotations

from pathlib import Path

from cwdpo.data.schema import REJECTED, ImageRef, PromptGroup, Response, user_message
from cwdpo.pipeline.data import with_every_chosen
from tiny_training import fresh, rows, train_dpo


def test_chosen_responses_come_back_once() -> None:
    gold, revised = Response("gold"), Response("revised", source="edit")
    data = PromptGroup(
        "a", (ImageRef(path="a.png"),), (user_message("?"),), (gold, revised, gold, Response("r", REJECTED))
    )
    with_negatives = data.with_responses((gold, Response("own", REJECTED, "sample")))
    (found,) = with_every_chosen([with_negatives], [data])
    assert [(r.role, r.text) for r in found.responses] == [
        ("chosen", "gold"),
        ("chosen", "revised"),
        ("rejected", "own"),
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
