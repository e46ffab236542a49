"""Workers and batches of equal length: the same updates from worker processes, and an order that a seed decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.data.images import image_size
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import GroupCollator, PromptEncoder
from cwdpo.training.data_parallel import LengthGrouped, estimated_length
from tiny_models import FAMILIES, sample_groups, tiny_processor
from tiny_training import clone, differing, fresh, rows, train_dpo, train_sft, weights


def test_workers_give_the_same_weights(tmp_path: Path) -> None:
    model, processor = fresh("qwen2_5_vl")
    groups = rows(10, tmp_path)
    args: dict[str, Any] = {"per_device_train_batch_size": 2, "num_train_epochs": 2}
    alone = train_dpo(clone(model), processor, groups, tmp_path / "a", **args)
    more = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 2, "dataloader_persistent_workers": True}
    helped = train_dpo(clone(model), processor, groups, tmp_path / "b", **args, **more)
    assert differing(weights(helped.model), weights(alone.model)) == []


def test_batch_through_a_worker_is_bitwise_the_same(tmp_path: Path) -> None:
    groups = sample_groups(4, tmp_path)
    collator = GroupCollator(PromptEncoder(tiny_processor("qwen2_5_vl")))
    loader = torch.utils.data.DataLoader(groups, batch_size=2, collate_fn=collator, num_workers=2)  # type: ignore[arg-type]
    for found, start in zip(loader, (0, 2), strict=True):
        batch, here = found["batch"], collator(groups[start : start + 2])["batch"]
        for one, other in zip(batch.groups, here.groups, strict=True):
            assert (one.prefix_ids, one.responses, one.image_key) == (
                other.prefix_ids,
                other.responses,
                other.image_key,
            )
            assert one.vision.keys() == other.vision.keys()
            assert all(torch.equal(one.vision[name], other.vision[name]) for name in one.vision)


def test_pinning_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch: Batch = GroupCollator(PromptEncoder(tiny_processor("qwen2_5_vl")))(sample_groups(2, tmp_path))["batch"]
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(self.numel()), self.clone())[1])
    before = {name: value.clone() for name, value in batch.groups[0].vision.items()}
    assert torch.utils.data._utils.pin_memory.pin_memory({"batch": batch})["batch"] is batch
    assert len(pinned) == sum(len(g.vision) for g in batch.groups) > 0
    assert all(torch.equal(batch.groups[0].vision[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_estimated_length_follows_the_image(family: str, tmp_path: Path) -> None:
    """Close to the true length where the family can tell from the size of an image (text is guessed at 4 a token)."""
    processor = tiny_processor(family)
    groups = sample_groups(3, tmp_path, images=(1, 2, 3))
    encoder = PromptEncoder(processor)
    true = [len(g.prefix_ids) for g in map(encoder.encode, groups)]
    found = [estimated_length(group, processor) for group in groups]
    assert found[0] < found[1] < found[2]
    assert all(abs(guess - length) < 20 for guess, length in zip(found, true, strict=True))
    assert image_size(groups[1].images[0])[0] in {28, 42, 56}


def test_order_by_seed_and_epoch() -> None:
    """8 rows of 4 lengths in batches of 2, twice over: equal lengths meet, and nothing but seed and epoch decides."""
    sampler = LengthGrouped([1, 9, 1, 9, 4, 4, 7, 7], 2, seed=3)
    assert len(sampler) == 8
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first and sorted(first) == list(range(8))
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    orders = [list(LengthGrouped(list(range(400)), 4, seed=s)) for s in (1, 2)]
    assert orders[0] != orders[1]
    spread = [max(orders[0][i : i + 4]) - min(orders[0][i : i + 4]) for i in range(4, 400, 4)]
    assert sum(spread) / len(spread) < 40  # at random, four of 400 are 240 apart


def test_grouped_training_goes_on_in_the_same_order(tmp_path: Path) -> None:
    model, processor = fresh("qwen2_5_vl")
    groups = rows(12, tmp_path)
    args: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "train_sampling_strategy": "group_by_length",
        "save_strategy": "steps",
        "save_steps": 4,
    }
    whole = train_sft(clone(model), processor, groups, tmp_path / "whole", **args)
    random = train_sft(clone(model), processor, groups, tmp_path / "r", **args | {"train_sampling_strategy": "random"})
    assert differing(weights(whole.model), weights(random.model)) != []
    from cwdpo.training.trainers import SFTCTrainer

    again = SFTCTrainer(clone(model), whole.args, groups, processing_class=processor)  # type: ignore[arg-type]
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert differing(weights(again.model), weights(whole.model)) == []
