"""What is said about speed: rates over the right seconds, arithmetic as counted; and it changes no result."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import TrainerCallback

from cwdpo.devices import peak_memory
from cwdpo.models.parts import freeze_parts
from cwdpo.scoring.collator import GroupCollator, PromptEncoder
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from cwdpo.training.callbacks.loop_callbacks import MetricsFile
from cwdpo.training.callbacks.throughput import (
    Speed,
    Stopwatch,
    Throughput,
    count_arithmetic,
    encoded_tokens,
    peak_flops,
    shown,
)
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer
from tiny_training import QUIET, clone, differing, fresh, lora, rows, train_dpo, weights


class SlowCollator(GroupCollator):
    """Takes a fixed time over every batch."""

    def __call__(self, groups: Any) -> Any:
        time.sleep(0.05)
        return super().__call__(groups)


class Probing(TrainerCallback):
    """Stands for the probes: a fixed time after every update."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        with self.watch:
            time.sleep(0.03)


def test_rates_by_hand() -> None:
    """40 pairs, 1,000 tokens and 16 TFLOP in 8 s, 2 of them waiting; 2 s of probes beside; a peak of 4 TFLOP/s."""
    speed = Speed(updates=4, seconds=8, waiting=2, probing=2, examples=40, tokens=1000, encoded=500, flops=16e12)
    figures = speed.figures("pairs", 4e12)
    memory = figures.pop("speed/peak_memory_gib")
    assert figures == {
        "speed/pairs_per_second": 5.0,
        "speed/tokens_per_second": 125.0,
        "speed/data_wait_share": 0.25,
        "speed/probe_share": 0.2,
        "speed/mfu": 0.5,
    }
    assert 0.05 < memory < 64
    line = shown(figures | {"speed/peak_memory_gib": 1.5})
    assert line == "5 pairs/s   125 tokens/s   data wait 25.0%   probes 20.0%   peak 1.50 GiB   MFU 50.0%"
    assert Speed().figures("pairs") == {} and shown({}) == ""
    assert "speed/mfu" not in speed.figures("prompts")


def test_peaks() -> None:
    """The longer name wins: a GH200 is no H20, an L40S no L4, an A10G no A100."""
    names = ("NVIDIA H200", "NVIDIA GH200 480GB", "NVIDIA H20", "NVIDIA L40S", "NVIDIA L4", "NVIDIA A100-SXM4-80GB")
    assert [peak_flops(name) for name in names] == [989e12, 989e12, 148e12, 362e12, 121e12, 312e12]
    assert peak_flops("NVIDIA A10G") == 125e12 and peak_flops("cpu") is None
    assert peak_memory() > 50 * 2**20


@pytest.mark.parametrize("stage", ["pairs", "prompts"])
def test_a_stage(stage: str, tmp_path: Path) -> None:
    model, processor = fresh()
    groups = rows(12, tmp_path, images=1)
    probing, metrics = Probing(), MetricsFile(tmp_path / "metrics.jsonl")
    speed = Throughput(tmp_path / "throughput.json", probing.watch, count_flops=True)
    args: dict[str, Any] = QUIET | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 6}
    common: dict[str, Any] = {"processing_class": processor, "callbacks": [metrics, speed, probing]}
    trainer: Any = (
        CWDPOTrainer(model, args=CWDPOConfig(str(tmp_path), **args), train_dataset=groups, **common)
        if stage == "pairs"
        else SFTCTrainer(model, SFTCConfig(str(tmp_path), **args), groups, **common)
    )
    trainer.data_collator = SlowCollator(trainer.encoder)
    speed.attach(trainer)
    trainer.train()
    (call,) = json.loads((tmp_path / "throughput.json").read_text())["calls"]
    # 6 updates of 2 prompts with a pair each; the first is left out.
    assert (call["updates"], call["examples"], call["last_update"], call["unit"]) == (5, 10, 6, stage)
    batches = [GroupCollator(PromptEncoder(processor))(groups[i : i + 1])["batch"] for i in range(2, 12)]
    assert call["encoded"] == sum(encoded_tokens(b) for b in batches)
    assert call["tokens"] == sum(len(g.prefix_ids) + len(r.ids) for b in batches for g in b.groups for r in g.responses)
    assert call["waiting"] >= 9 * 0.05 and call["seconds"] > call["waiting"]  # one batch is fetched in advance
    assert call["probing"] >= 6 * 0.03
    assert call["flops"] > 2 * call["encoded"] * 3 * sum(p.numel() for n, p in model.named_parameters() if "mlp" in n)
    assert call["peak_flops"] is None and "speed/mfu" not in call
    logged = [row for row in trainer.state.log_history if "speed/tokens_per_second" in row]
    assert [row["step"] for row in logged] == [2, 3, 4, 5, 6]
    assert f"speed/{stage}_per_second" in logged[0]
    assert speed.summary().startswith(f"{call[f'speed/{stage}_per_second']:.3g} {stage}/s")
    assert "speed/" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("family", "trained"),
    [
        ("qwen2_5_vl", "all"),
        ("qwen2_5_vl", "adapters"),
        ("qwen3_vl", "language"),
        ("llava", "all"),
        ("llava", "adapters"),
    ],
)
def test_the_arithmetic_is_that_of_the_update(family: str, trained: str, tmp_path: Path) -> None:
    """Within 6 % of what the counter gives for a forward and a backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    model, processor = fresh(family, num_hidden_layers=6)
    if trained == "adapters":
        model = get_peft_model(model, lora(target_modules=r".*language_model.*_proj", r=1))
    elif trained == "language":
        freeze_parts(model, ["vision", "projector"])
    batch = GroupCollator(PromptEncoder(processor))(rows(3, tmp_path, images=1))["batch"]
    cache = FeatureCache(2**30)
    scorer = AutoScorer("shared", cache=cache)
    scorer(model, batch)
    asked = cache.misses
    random = torch.get_rng_state()
    found = count_arithmetic(model.train(), scorer, [batch])
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(p.grad is None for p in model.parameters()) and cache.misses == asked
    cache.limit = 0
    with FlopCounterMode(display=False) as counter:
        SharedPrefixScorer(FrozenVision())(model, batch).logits.sum().backward()
    tokens = encoded_tokens(batch)
    assert found.of(tokens) == pytest.approx(counter.get_total_flops(), rel=0.06)
    assert found.of(tokens, 0.0) == pytest.approx(tokens * found.text)
    assert 0.005 < found.vision / (found.text + found.vision) < 0.6


def test_it_changes_nothing(tmp_path: Path) -> None:
    model, processor = fresh()
    groups = rows(6, tmp_path, images=1)
    args: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 3}
    without = train_dpo(clone(model), processor, groups, tmp_path / "a", **args)
    speed = Throughput(tmp_path / "throughput.json", count_flops=True)
    settings = CWDPOConfig(str(tmp_path / "b"), **QUIET | args)
    trainer = CWDPOTrainer(
        clone(model), args=settings, train_dataset=groups, processing_class=processor, callbacks=[speed]
    )
    speed.attach(trainer)
    trainer.train()
    assert differing(weights(trainer.model), weights(without.model)) == []


def test_a_resumed_stage_keeps_both_calls(tmp_path: Path) -> None:
    model, processor = fresh()
    groups = rows(8, tmp_path, images=1)

    def run(steps: int, resume: str | None) -> None:
        settings = QUIET | {"max_steps": steps, "per_device_train_batch_size": 2, "save_strategy": "steps"}
        args = SFTCConfig(str(tmp_path / "out"), **settings | {"save_steps": 4})
        speed = Throughput(tmp_path / "throughput.json")
        trainer = SFTCTrainer(clone(model), args, groups, processing_class=processor, callbacks=[speed])
        speed.attach(trainer)
        trainer.train(resume_from_checkpoint=resume)

    run(4, None)
    run(8, str(tmp_path / "out" / "checkpoint-4"))
    calls = json.loads((tmp_path / "throughput.json").read_text())["calls"]
    assert [(call["last_update"], call["updates"]) for call in calls] == [(4, 3), (8, 3)]
    assert torch.get_num_threads() == 1
