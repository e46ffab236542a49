"""A loss or gradient that is not finite stops training before the update and says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.errors import NonFiniteError
from cwdpo.probes.reading import ProbeSet
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.training.callbacks.probe_callback import ProbeCallback
from cwdpo.training.configs import SFTCConfig
from cwdpo.training.trainers import SFTCTrainer
from tiny_training import QUIET, differing, fresh, rows, train_dpo, train_sft, weights


def spoiled() -> tuple[Any, Any]:
    """A model to which the letter Z is NaN: only rows that hold it are hit."""
    model, processor = fresh()
    token = processor.tokenizer("Z", add_special_tokens=False)["input_ids"]
    assert len(token) == 1
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    return model, processor


def marked(n: int, row: int, folder: Path) -> list[Any]:
    """Rows of which one chosen response holds the letter Z."""
    made = rows(n, folder, images=0)
    group = made[row]
    first, *rest = group.responses
    made[row] = group.with_responses([type(first)(text=first.text + " ZZ", role="chosen"), *rest])
    return made


@pytest.mark.parametrize("accumulation", [1, 2])
def test_bad_row_is_named(accumulation: int, tmp_path: Path) -> None:
    """Row 4 of the file is in the second update of 2; the first update stays, the second changes nothing."""
    groups = marked(4, 3, tmp_path)
    model, processor = spoiled()
    cut = {"per_device_train_batch_size": 2 // accumulation, "gradient_accumulation_steps": accumulation}
    model_one = train_sft(*spoiled(), groups[:2], tmp_path / "one", max_steps=1, **cut).model
    with pytest.raises(NonFiniteError) as caught:
        train_sft(model, processor, groups, tmp_path / "run", **cut)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("update 2: the loss is nan; nothing was updated. Rows: sample.jsonl:4;")
    got, want = weights(model), weights(model_one)
    assert not [n for n in got if not torch.equal(got[n].nan_to_num(9.0), want[n].nan_to_num(9.0))]


def test_bad_pair_is_named(tmp_path: Path) -> None:
    """Stage 2: a live reference stops at the update, a cached one before training, both at the same row."""
    groups = marked(4, 2, tmp_path)
    model, processor = spoiled()
    args = {"per_device_train_batch_size": 2}
    with pytest.raises(NonFiniteError, match=r"update 2: the loss is nan.*Rows: sample\.jsonl:3;"):
        train_dpo(model, processor, groups, tmp_path / "live", reference="live", **args)
    with pytest.raises(NonFiniteError, match=r"reference: a log-probability is not finite. Rows: sample\.jsonl:3$"):
        train_dpo(*spoiled(), groups, tmp_path / "cached", **args)


def test_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """A finite loss with an infinite gradient: the weights stay as they were."""
    model, processor = fresh()
    model.lm_head.weight.register_hook(lambda gradient: gradient / 0.0)
    before = weights(model)
    with pytest.raises(
        NonFiniteError, match=r"update 1: the gradient norm is (nan|inf); nothing was updated"
    ) as caught:
        train_sft(model, processor, rows(2, tmp_path), tmp_path / "run", per_device_train_batch_size=2)
    assert "sample.jsonl:1, sample.jsonl:2" in str(caught.value)
    assert not differing(before, weights(model))


def test_learning_rate_out_of_range(tmp_path: Path) -> None:
    """The update after the one that threw the weights away is not made."""
    model, processor = fresh()
    with pytest.raises(NonFiniteError, match="update 2: the"):
        train_sft(model, processor, rows(4, tmp_path), tmp_path / "run", learning_rate=1e37, max_steps=4)


def test_probe_of_a_broken_model(tmp_path: Path) -> None:
    model, processor = fresh()
    args = SFTCConfig(str(tmp_path / "run"), **QUIET | {"learning_rate": 1e37, "max_steps": 3})
    trainer = SFTCTrainer(model, args, rows(4, tmp_path), processing_class=processor)
    probes = ProbeSet(rows(2, tmp_path, seed=4), trainer.encoder, batch_size=2, floor=-3.0, tau=1.0)
    trainer.add_callback(ProbeCallback(probes, SeparateScorer(), tmp_path, every=1))
    with pytest.raises(NonFiniteError, match=r"after update 1: probe: .*sample\.jsonl:1, sample\.jsonl:2"):
        trainer.train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_bad_row_can_be_skipped(accumulation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second of three updates is left out: the same weights as from the other two. Its loss is in no mean."""
    groups = marked(6, 3, tmp_path)
    cut = {"per_device_train_batch_size": 2 // accumulation, "gradient_accumulation_steps": accumulation}
    cut |= {"lr_scheduler_type": "constant", "logging_steps": 3}
    without = train_sft(*spoiled(), [*groups[:2], *groups[4:]], tmp_path / "without", max_steps=2, **cut)
    trainer = train_sft(*spoiled(), groups, tmp_path / "run", max_steps=3, on_nonfinite="skip", **cut)
    assert trainer.state.global_step == 3
    got, want = weights(trainer.model), weights(without.model)
    assert not [n for n in got if not torch.equal(got[n].nan_to_num(9.0), want[n].nan_to_num(9.0))]
    assert "skipped: update 2: the loss is nan; nothing was updated. Rows: sample.jsonl:4;" in caplog.text
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    assert row["skipped_updates"] == 1
    assert row["loss"] == pytest.approx(row["nll/chosen"], rel=1e-3)  # every update has as many chosen responses


def test_a_bad_gradient_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of two updates the first has an infinite gradient: it moves nothing, the second does."""
    model, processor = fresh()
    bad = [True, False]
    model.lm_head.weight.register_hook(lambda gradient: gradient / 0.0 if bad.pop(0) else gradient)
    args = {"per_device_train_batch_size": 2, "lr_scheduler_type": "constant", "objective": "sft"}
    one = train_sft(*fresh(), rows(4, tmp_path)[2:], tmp_path / "one", max_steps=1, **args)
    trainer = train_sft(model, processor, rows(4, tmp_path), tmp_path / "run", max_steps=2, on_nonfinite="skip", **args)
    assert not differing(weights(one.model), weights(trainer.model))
    assert "update 1: the gradient norm is" in caplog.text


def test_too_many_in_a_row_stop(tmp_path: Path) -> None:
    """A learning rate that throws the weights away leaves nothing that is finite."""
    args = {"learning_rate": 1e37, "max_steps": 9, "on_nonfinite": "skip"}
    with pytest.raises(NonFiniteError, match=r"update 7: .*; 5 updates before it were skipped, one after another$"):
        train_sft(*fresh(), rows(4, tmp_path), tmp_path / "run", **args)
