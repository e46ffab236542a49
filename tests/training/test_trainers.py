"""Both stages train, log, evaluate and save, in every form that users start them in."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, Trainer

from cwdpo.errors import ModelError, RecipeError
from cwdpo.models.loading import load_model
from cwdpo.models.parts import freeze_parts, part_of
from cwdpo.models.processors import load_processor
from cwdpo.recipe import ModelSection
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainer import GroupTrainer
from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer
from tiny_models import tiny_processor
from tiny_training import QUIET, differing, fresh, logps_of, lora, rows, train_dpo, train_sft, trl_rows, weights

TRL_METRICS = (
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected", "entropy", "mean_token_accuracy", "num_tokens"),
)


@pytest.mark.parametrize(
    ("family", "train", "adapters"),
    [
        ("qwen2_5_vl", train_sft, True),
        ("qwen2_5_vl", train_dpo, False),
        ("llava", train_sft, False),
        ("llava", train_dpo, True),
    ],
)
def test_train_save_load(family: str, train: Any, adapters: bool, tmp_path: Path, tiny_folder: Any) -> None:
    """Prompt groups with 1 or 2 negatives and 0, 1 or 2 images; plain transformers and PEFT load the result."""
    groups = rows(6, tmp_path, responses=[2, 3])
    trainer = train(
        *fresh(family),
        groups,
        tmp_path / "run",
        peft_config=lora() if adapters else None,
        optim="adamw_torch",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=3,
    )
    assert trainer.state.global_step == 4
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    folder = tmp_path / "run" / "checkpoint-4"
    if adapters:
        loaded = PeftModel.from_pretrained(
            AutoModelForImageTextToText.from_pretrained(tiny_folder(family)), str(folder)
        )
    else:
        loaded = AutoModelForImageTextToText.from_pretrained(folder)
    processor = load_processor(folder)
    want = logps_of(trainer.model, trainer.processing_class, groups)
    torch.testing.assert_close(logps_of(loaded, processor, groups), want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("family", "train"), [("qwen2_5_vl", train_dpo), ("llava", train_sft)])
def test_trl_columns(family: str, train: Any, tmp_path: Path) -> None:
    """A datasets.Dataset with TRL's columns trains to the same weights as the prompt groups that it was made of."""
    groups = rows(4, tmp_path, images=1)
    table = trl_rows(groups)
    assert isinstance(table.features["images"].feature, datasets.Image)
    one = train(*fresh(family), groups, tmp_path / "groups", per_device_train_batch_size=2)
    other = train(*fresh(family), table, tmp_path / "table", per_device_train_batch_size=2)
    assert not differing(weights(one.model), weights(other.model))


def test_metric_names(tmp_path: Path) -> None:
    """TRL's names; the numbers of tokens, and the mean reward and log-probability, of two updates of one pair."""
    model, processor = fresh()
    groups = rows(2, tmp_path)
    before = logps_of(model, processor, groups)  # chosen 0, rejected 0, chosen 1, rejected 1
    trainer = train_dpo(model, processor, groups, tmp_path, per_device_train_batch_size=1, num_train_epochs=1)
    first, second = (row for row in trainer.state.log_history if "loss" in row)
    assert not set(TRL_METRICS) - first.keys()
    assert first["logps/chosen"] == pytest.approx(float(before[0]), abs=1e-4)
    assert first["logps/rejected"] == pytest.approx(float(before[1]), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    encoded = [trainer.encoder.encode(g) for g in groups]
    sizes = [sum(len(g.prefix_ids) + len(r.ids) for r in g.responses) for g in encoded]
    assert [first["num_tokens"], second["num_tokens"]] == [sizes[0], sum(sizes)]
    assert second["rewards/margins"] == pytest.approx(second["rewards/chosen"] - second["rewards/rejected"], abs=1e-6)


@pytest.mark.parametrize("parts", [["vision"], ["vision", "language"]])
def test_frozen_parts(parts: list[str], tmp_path: Path) -> None:
    """Frozen parts come out bitwise as they went in; the others all move."""
    model, processor = fresh("qwen2_5_vl")
    freeze_parts(model, parts)
    before = weights(model)
    train_sft(model, processor, rows(2, tmp_path, images=1), tmp_path, max_steps=1)
    moved = {part_of(name) for name in differing(before, weights(model))}
    assert moved == {"vision", "projector", "language"} - set(parts)


@pytest.mark.parametrize(("family", "adapters"), [("qwen2_5_vl", True), ("llava", False)])
def test_gradient_checkpointing(family: str, adapters: bool, tmp_path: Path) -> None:
    """Recomputed activations give the same update."""
    found: list[dict[str, torch.Tensor]] = []
    groups = rows(2, tmp_path, images=1)
    for on in (False, True):
        model, processor = fresh(family)
        peft_config = lora() if adapters else None
        args = {"max_steps": 1, "activation_checkpointing": on}
        trainer = train_dpo(model, processor, groups, tmp_path / str(on), peft_config=peft_config, **args)
        found.append(weights(trainer.model))
    moved = differing(found[0], weights(get_peft_model(fresh(family)[0], lora()) if adapters else fresh(family)[0]))
    assert moved
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("adapters", "reference"), [(False, "cached"), (True, "live")])
def test_bfloat16_autocast(adapters: bool, reference: str, tmp_path: Path) -> None:
    """Weights stay float32; policy and reference are rounded alike, so the first loss is log 2 all the same."""
    model, processor = fresh()
    trainer = train_dpo(
        model,
        processor,
        rows(2, tmp_path),
        tmp_path,
        peft_config=lora() if adapters else None,
        bf16=True,
        reference=reference,
        per_device_train_batch_size=2,
        max_steps=2,
    )
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    first, second = (row for row in trainer.state.log_history if "loss" in row)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["loss"] < first["loss"]


def test_model_and_processor_by_name(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """A directory in place of the model; the processor comes from it too."""
    groups = rows(2, tmp_path)
    args = CWDPOConfig(str(tmp_path / "run"), **QUIET | {"max_steps": 1})
    trainer = CWDPOTrainer(str(tiny_folder("qwen2_5_vl")), args=args, train_dataset=groups)
    trainer.train()
    assert type(trainer.processing_class).__name__ == "Qwen2_5_VLProcessor"
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_adapter_by_name(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """A directory with an adapter of stage 1: stage 2 goes on with it, and its start is the reference."""
    groups = rows(2, tmp_path)
    base = load_model(ModelSection(path=str(tiny_folder("llava"))))
    one = train_sft(base, tiny_processor("llava"), groups, tmp_path / "one", peft_config=lora(), max_steps=2)
    one.save_model(str(tmp_path / "stage1"))
    for reference in ("cached", "live"):
        args = CWDPOConfig(str(tmp_path / reference), **QUIET | {"max_steps": 2, "reference": reference})
        two = CWDPOTrainer(str(tmp_path / "stage1"), args=args, train_dataset=groups)
        two.train()
        assert isinstance(two.model, PeftModel)
        first, second = (row["loss"] for row in two.state.log_history if "loss" in row)
        assert first == pytest.approx(math.log(2), abs=1e-6)
        assert second < first


def test_seed_fixes_the_adapters(tmp_path: Path) -> None:
    groups = rows(2, tmp_path)
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        trainer = train_sft(*fresh(), groups, tmp_path / str(noise), peft_config=lora(lora_dropout=0.1), max_steps=1)
        found.append(weights(trainer.model))
    assert not differing(*found)


def test_one_line_mistakes(tmp_path: Path) -> None:
    model, processor = fresh()
    groups = rows(2, tmp_path)
    args = CWDPOConfig(str(tmp_path / "run"), **QUIET)
    given: dict[str, Any] = {"args": args, "train_dataset": groups}
    with pytest.raises(RecipeError, match="ref_model"):
        CWDPOTrainer(model, model, processing_class=processor, **given)
    with pytest.raises(RecipeError, match="ref_model and peft_config"):
        CWDPOTrainer(model, fresh()[0], processing_class=processor, peft_config=lora(), **given)
    with pytest.raises(ModelError, match="processing_class"):
        CWDPOTrainer(model, **given)
    with pytest.raises(ModelError, match="processor"):
        CWDPOTrainer(model, processing_class=processor.tokenizer, **given)
    wrapped = get_peft_model(fresh()[0], lora())
    with pytest.raises(ModelError, match="adapters"):
        CWDPOTrainer(wrapped, processing_class=processor, peft_config=lora(), **given)
    native = fresh()[0]
    native.add_adapter(lora())
    with pytest.raises(ModelError, match=r"PeftModel\.from_pretrained"):
        SFTCTrainer(native, SFTCConfig(str(tmp_path), **QUIET), groups, processing_class=processor)
    for parameter in wrapped.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="is_trainable=True"):
        train_sft(wrapped, processor, groups, tmp_path)


def test_five_private_methods_of_transformers_are_overridden() -> None:
    """Each may change with any release of transformers: no more than these, each with its reason."""
    private = {n for n in vars(GroupTrainer) if n.startswith("_") and not n.startswith("__") and hasattr(Trainer, n)}
    assert private == {
        "_get_grad_norm",
        "_load_best_model",
        "_load_from_checkpoint",
        "_prepare_for_training",
        "_save_checkpoint",
    }
    assert all(vars(GroupTrainer)[name].__doc__ for name in private)


class _Normed(torch.nn.Module):
    """A BatchNorm over the channels of tokens, as in convolutional towers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(tokens.flatten(0, -2)).view_as(tokens)


@pytest.mark.parametrize("train", [train_sft, train_dpo], ids=["sft_c", "cw_dpo"])
def test_running_statistics_stay(train: Any, tmp_path: Path) -> None:
    model, processor = fresh("llava")
    projector = model.model.multi_modal_projector
    projector.act = _Normed(projector.linear_1.out_features)
    before = weights(model)
    trainer = train(model, processor, rows(4, tmp_path), tmp_path / "run", max_steps=2)
    changed = differing(before, weights(model))
    assert any("act.norm.weight" in name for name in changed)
    assert not [name for name in changed if "running" in name or "tracked" in name]
    if train is train_dpo:  # the policy computes as the reference does
        assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
