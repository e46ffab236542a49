"""Probes, diagnosis and early stopping in our trainer, in TRL's DPOTrainer and in transformers' own Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from cwdpo.errors import RecipeError
from cwdpo.probes.diagnosis.rules import StageFacts
from cwdpo.probes.reading import ProbeSet
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.training.callbacks.early_stopping import ProbeEarlyStopping
from cwdpo.training.callbacks.live_diagnosis import DiagnosisCallback
from cwdpo.training.callbacks.probe_callback import ProbeCallback
from cwdpo.training.configs import CWDPOConfig
from cwdpo.training.trainers import CWDPOTrainer
from tiny_runs import rows_of
from tiny_training import QUIET, clone, differing, fresh, lora, rows, trl_rows, weights

trl = pytest.importorskip("trl")


class Scripted(ProbeCallback):
    """Readings whose `accuracy` is given, and the weights at each."""

    def __init__(self, probes: ProbeSet, folder: Path, accuracy: list[float]) -> None:
        super().__init__(probes, AutoScorer("auto"), folder, every=1)
        self.accuracy = accuracy
        self.seen: list[dict[str, torch.Tensor]] = []

    def _keep(self, state: Any, reading: dict[str, Any]) -> None:
        reading["accuracy"] = self.accuracy[state.global_step]
        super()._keep(state, reading)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, model=model, **kwargs)
        self.seen.append(weights(model))


def probe_set(processor: Any, folder: Path) -> ProbeSet:
    held_out = rows(3, folder / "held_out", images=1, responses=3, seed=1)
    return ProbeSet(held_out, PromptEncoder(processor), batch_size=2, floor=-3.0, tau=1.0)


SAVING: dict[str, Any] = QUIET | {
    "per_device_train_batch_size": 2,
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 1,
}


def ours(model: Any, processor: Any, folder: Path, callbacks: list[Any], **changes: Any) -> Any:
    return CWDPOTrainer(
        model,
        args=CWDPOConfig(str(folder), objective="dpo", **SAVING | changes),
        train_dataset=rows(8, folder, images=1),
        processing_class=processor,
        callbacks=callbacks,
    )


def theirs(model: Any, processor: Any, folder: Path, callbacks: list[Any], **changes: Any) -> Any:
    args = SAVING | changes
    peft_config = args.pop("peft_config", None)
    config = trl.DPOConfig(str(folder), bf16=False, activation_checkpointing=False, max_length=None, **args)
    return trl.DPOTrainer(
        model,
        None if peft_config else clone(model),
        args=config,
        train_dataset=trl_rows(rows(8, folder, images=1)),
        processing_class=processor,
        peft_config=peft_config,
        callbacks=callbacks,
    )


def plain(model: Any, processor: Any, folder: Path, callbacks: list[Any], **changes: Any) -> Any:
    """Supervised finetuning with nothing of ours but the callbacks."""
    encoder = PromptEncoder(processor)

    def collate(groups: Any) -> dict[str, Any]:
        (group,) = groups
        inputs = dict(encoder.prompt_inputs([group]))
        answer = torch.tensor([encoder.encode(group).responses[0].ids])
        prompt = inputs.pop("input_ids")
        ids = torch.cat([prompt, answer], 1)
        labels = torch.cat([torch.full_like(prompt, -100), answer], 1)
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": inputs["pixel_values"]}

    args = SAVING | {"per_device_train_batch_size": 1, "remove_unused_columns": False} | changes
    return Trainer(
        model,
        TrainingArguments(str(folder), **args),
        data_collator=collate,
        train_dataset=rows(8, folder, images=1),
        callbacks=callbacks,
    )


@pytest.mark.parametrize("make", [ours, theirs, plain])
def test_probes_and_diagnosis_in_any_trainer(make: Any, tmp_path: Path) -> None:
    """Readings at 0, 2, 4 and 6 are written, a diagnosis beside them, and the weights are those of a run without."""
    model, processor = fresh()
    probes = ProbeCallback(probe_set(processor, tmp_path), AutoScorer("auto"), tmp_path / "probes", every=2)
    said: list[str] = []
    facts = StageFacts(objective="sft") if make is plain else StageFacts(objective="cw_dpo")
    diagnosis = DiagnosisCallback(probes, facts, say=said.append)
    trainer = make(clone(model), processor, tmp_path / "with", [probes, diagnosis])
    trainer.train()
    without = make(clone(model), processor, tmp_path / "without", [])
    without.train()
    assert not differing(weights(trainer.model), weights(without.model))
    assert differing(weights(trainer.model), weights(model))

    readings = rows_of(tmp_path / "probes" / "probes.jsonl")
    assert [row["step"] for row in readings] == [0, 2, 4, 6]
    assert readings[0]["tv"] == 0
    assert 0 < readings[-1]["tv"] < 1
    assert readings[-1]["kinds"]["chosen"]["delta_start"] != 0
    assert readings[-1]["kinds"]["chosen"]["delta_start_se"] > 0
    found = json.loads((tmp_path / "probes" / "diagnosis.json").read_text())
    assert (found["readings"], found["step"]) == (4, 6)
    names = {f["rule"] for f in found["findings"]}
    # Random weights give ℓ̄ near −8 where the floor is −3: all negatives are cold. Plain SFT has no such rule.
    assert ("dead_negatives" in names) is (make is not plain)
    assert any("dead_negatives" in line for line in said) is (make is not plain)


@pytest.mark.parametrize("make", [ours, theirs, plain])
def test_early_stopping_in_any_trainer(make: Any, tmp_path: Path) -> None:
    """Accuracy is best at update 2 and patience is 2: training stops after update 4 with the weights of update 2."""
    model, processor = fresh()
    probes = Scripted(probe_set(processor, tmp_path), tmp_path / "probes", [0.1, 0.2, 0.5, 0.4, 0.5, 0.9, 0.9])
    early = ProbeEarlyStopping(probes, "accuracy", patience=2)
    trainer = make(clone(model), processor, tmp_path / "run", [probes, early])
    trainer.train()
    assert trainer.state.global_step == 4
    assert not differing(weights(trainer.model), probes.seen[1])
    assert differing(weights(trainer.model), probes.seen[3])
    kept = sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*"))
    assert "checkpoint-2" in kept
    assert "checkpoint-1" not in kept
    assert json.loads((tmp_path / "probes" / "early_stop.json").read_text()) == {
        "signal": "accuracy",
        "start": 0.1,
        "best": 0.5,
        "best_step": 2,
        "last_step": 4,
        "stopped": True,
        "restored": True,
    }


def test_early_stopping_with_adapters_in_trl(tmp_path: Path) -> None:
    """The adapters of the best reading come back; the base was never touched."""
    model, processor = fresh()
    before = weights(model)
    probes = Scripted(probe_set(processor, tmp_path), tmp_path / "probes", [0.1, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4])
    early = ProbeEarlyStopping(probes, "accuracy", patience=2)
    trainer = theirs(model, processor, tmp_path / "run", [probes, early], peft_config=lora(init_lora_weights=False))
    trainer.train()
    assert trainer.state.global_step == 3
    assert early.restored
    after = weights(trainer.model)
    assert not differing(after, probes.seen[0])
    assert differing(after, probes.seen[2])
    saved = load_file(tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors")
    assert saved
    base = trainer.model.get_base_model().state_dict()
    assert all(
        torch.equal(value, before[name.replace(".base_layer.", ".")])
        for name, value in base.items()
        if "lora" not in name
    )


def test_no_stop_keeps_the_best(tmp_path: Path) -> None:
    """Without stopping, all six updates are made and the weights of the third come back."""
    model, processor = fresh()
    probes = Scripted(probe_set(processor, tmp_path), tmp_path / "probes", [0, 0, 0, 0.3, 0.2, 0.1, 0])
    early = ProbeEarlyStopping(probes, patience=1, stop=False)
    trainer = ours(model, processor, tmp_path / "run", [probes, early])
    trainer.train()
    assert trainer.state.global_step == 6
    assert not differing(weights(trainer.model), probes.seen[2])
    improving = Scripted(probe_set(processor, tmp_path), tmp_path / "again", [0, 1, 2, 3, 4, 5, 6])
    last = ours(clone(fresh()[0]), processor, tmp_path / "last", [improving, ProbeEarlyStopping(improving)])
    last.train()
    assert not differing(weights(last.model), improving.seen[5])


def test_a_resumed_run_decides_the_same(tmp_path: Path) -> None:
    """Killed after update 3, taken up again: the same stop, the same weights."""
    script = [0.1, 0.2, 0.5, 0.4, 0.5, 0.9, 0.9]
    found: list[Any] = []
    for name in ("whole", "cut"):
        model, processor = fresh()
        probes = Scripted(probe_set(processor, tmp_path), tmp_path / name / "probes", script)
        steps = {"save_steps": 1, "save_total_limit": 3}
        trainer = ours(model, processor, tmp_path / name, [probes, ProbeEarlyStopping(probes, patience=2)], **steps)
        trainer.train()
        if name == "cut":
            model, processor = fresh()
            probes = Scripted(probe_set(processor, tmp_path), tmp_path / name / "probes", script)
            early = ProbeEarlyStopping(probes, patience=2)
            trainer = ours(model, processor, tmp_path / name, [probes, early], **steps)
            trainer.train(str(tmp_path / name / "checkpoint-3"))
            assert [row["step"] for row in probes.rows] == [0, 1, 2, 3, 4]
        found.append((trainer.state.global_step, weights(trainer.model)))
    assert found[0][0] == found[1][0] == 4
    assert not differing(found[0][1], found[1][1])


@pytest.mark.parametrize("make", [ours, theirs, plain])
def test_stop_on_diagnosis(make: Any, tmp_path: Path) -> None:
    """A learning rate that ruins the model: training stops at a serious finding, after a checkpoint, in any trainer."""
    model, processor = fresh()
    probes = ProbeCallback(probe_set(processor, tmp_path), AutoScorer("auto"), tmp_path / "probes", every=1)
    facts = StageFacts(objective="sft" if make is plain else "dpo")
    diagnosis = DiagnosisCallback(probes, facts, action="stop")
    trainer = make(model, processor, tmp_path / "run", [probes, diagnosis], learning_rate=3.0, max_steps=20)
    trainer.train()
    assert diagnosis.stopped_by is not None
    assert diagnosis.stopped_by.severity == "serious"
    assert trainer.state.global_step < 20
    checkpoint = tmp_path / "run" / f"checkpoint-{trainer.state.global_step}"
    assert (checkpoint / "trainer_state.json").is_file()
    assert (checkpoint / "complete.json").is_file() or make is not ours


def test_mistakes(tmp_path: Path) -> None:
    model, processor = fresh()
    probes = ProbeCallback(probe_set(processor, tmp_path), AutoScorer("auto"), tmp_path / "probes", every=1)
    with pytest.raises(RecipeError, match="signal 'loss' is unknown"):
        ProbeEarlyStopping(probes, "loss")
    trainer = plain(model, processor, tmp_path / "run", [probes, ProbeEarlyStopping(probes)])
    trainer.args.load_best_model_at_end = True
    with pytest.raises(RecipeError, match="use one"):
        trainer.train()
