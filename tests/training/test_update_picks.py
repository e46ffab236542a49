"""The trainer asks a picker what an update trains on, and stops where a refresh is due."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from cwdpo.data.schema import REJECTED
from cwdpo.recipe import RefreshSection
from cwdpo.scoring.batch import Batch
from cwdpo.training.callbacks.loop_callbacks import is_due
from cwdpo.training.configs import CWDPOConfig
from cwdpo.training.trainers import CWDPOTrainer
from tiny_training import QUIET, fresh, largest_difference, rows, weights


def due(step: int, last: int = 0, history: list[dict[str, Any]] | None = None, **settings: Any) -> bool:
    return is_due(RefreshSection(**settings), step=step, updates=100, last=last, history=history or [])


def test_when_a_refresh_is_due():
    assert [step for step in range(102) if due(step, every=30)] == list(range(30, 100))
    assert [step for step in range(102) if due(step, last=60, every=30)] == list(range(90, 100))
    history = [
        {"step": 50, "cooling/weight": 0.3},
        {"step": 60, "cooling/weight": 0.1, "loss": 1.0},
        {"step": 60, "probe/ece": 0.2},
    ]
    below = {"below": 0.2, "wait": 20}
    assert due(60, history=history, **below)
    assert not due(61, history=history, **below)  # the row is of another update
    assert not due(50, history=history[:1], **below)  # 0.3 is no less than 0.2
    assert not due(60, last=45, history=history, **below)  # 15 updates are fewer than 20
    assert due(60, last=40, history=history, **below)
    assert not due(60, **below) and due(60, every=60, **below)
    assert not due(100, every=1)  # nothing is left to train


class Seen(TrainerCallback):
    def __init__(self) -> None:
        self.trainer: Any = None
        self.keys: list[list[str]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        batches = self.trainer.update_batches
        self.keys.append([r.key for b in batches for r in b.responses if r.role == REJECTED])


def one_by_one(batch: Batch, update: int, updates: int) -> Batch:
    """Keep the rejected response whose turn it is."""
    assert updates == 4
    groups = []
    for group in batch.groups:
        rejected = [r for r in group.responses if r.role == REJECTED]
        kept = tuple(r for r in group.responses if r.role != REJECTED or r is rejected[update % len(rejected)])
        groups.append(replace(group, responses=kept))
    return Batch(tuple(groups))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_update_trains_on_what_is_picked(workers: int, tmp_path: Path):
    groups = rows(4, tmp_path, responses=3)
    model, processor = fresh()
    seen = Seen()
    args = CWDPOConfig(
        str(tmp_path / "a"),
        **QUIET | {"max_steps": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
        dataloader_num_workers=workers,
    )
    given: dict[str, Any] = {"args": args, "train_dataset": groups, "processing_class": processor}
    seen.trainer = CWDPOTrainer(model, callbacks=[seen], picker=one_by_one, **given)
    seen.trainer.train()
    encoded = [seen.trainer.encoder.encode(g) for g in groups]
    keys = [[r.key for r in g.responses if r.role == REJECTED] for g in encoded]
    # two rows an update, in order: rows 0 and 1 take their first, rows 2 and 3 their second, …
    pairs = [(0, 1), (2, 3), (0, 1), (2, 3)]
    assert seen.keys == [[keys[row][u % len(keys[row])] for row in pair] for u, pair in enumerate(pairs)]
    # The same as training on these alone, but for rounding: the picked rows are padded to the length of the others.
    if workers == 0:
        start = weights(fresh()[0])
        picked, plain = weights(model), fresh()[0]
        turns = [
            g.with_responses([g.chosen, g.by_role(REJECTED)[u % len(g.by_role(REJECTED))]])
            for u, pair in enumerate(pairs)
            for g in (groups[row] for row in pair)
        ]
        given |= {"train_dataset": turns, "args": CWDPOConfig(str(tmp_path / "b"), **args_of(args))}
        CWDPOTrainer(plain, **given).train()
        assert largest_difference(weights(plain), picked, start) < 2e-4


def args_of(args: CWDPOConfig) -> dict[str, Any]:
    names = [*QUIET, "max_steps", "gradient_accumulation_steps", "per_device_train_batch_size"]
    return {name: getattr(args, name) for name in names}
