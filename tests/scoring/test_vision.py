"""Features of a frozen tower in place of pixels: nothing changes but the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import ALL, collate, gradients
from oracle import image_counts
from peft import LoraConfig, get_peft_model

from cwdpo.scoring.family import Family
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from tiny_models import sample_groups, tiny_model, tiny_processor

LANGUAGE = r".*(language_model|text_model).*\.(q|v)_proj"


def lora(family: str, modules: str = LANGUAGE) -> tuple[Any, Any]:
    processor = tiny_processor(family)
    config = LoraConfig(r=4, target_modules=modules, init_lora_weights=False)
    model: Any = get_peft_model(tiny_model(family, processor), config)
    model.train()
    return model, processor


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, SharedPrefixScorer) for family in ALL),
        *((f, SeparateScorer) for f in ("qwen3_vl", "llava")),
    ],
)
def test_same_scores_and_gradients(family: str, kind: Any, tmp_path: Path) -> None:
    model, processor = lora(family)
    batch = collate(processor, sample_groups(3, tmp_path, images=image_counts(family, 1, 0, 2)))
    vision = FrozenVision()
    pixels, features = gradients(kind(), model, batch), gradients(kind(vision), model, batch)
    inner = model.get_base_model()
    inputs = Family().vision_inputs(batch, [1, 1, 1])
    assert "mm_encoder_outputs" in vision(inner, inputs) and "pixel_values" not in vision(inner, inputs)
    torch.testing.assert_close(features[0], pixels[0], rtol=0, atol=1e-5)
    assert pixels[1].keys() == features[1].keys() and pixels[1]
    for name, gradient in pixels[1].items():
        torch.testing.assert_close(features[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_checkpointing_no_longer_differentiates_the_tower(tmp_path: Path) -> None:
    model, processor = lora("qwen2_5_vl")
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = collate(processor, sample_groups(1, tmp_path))
    passes: list[bool] = []
    block = model.get_base_model().model.visual.blocks[0].norm1
    block.register_forward_hook(lambda _, args, out: passes.append(out.requires_grad))
    gradients(SharedPrefixScorer(), model, batch)
    assert passes == [True, True]  # once forward, once recomputed for a backward pass nobody needs
    vision = FrozenVision()
    gradients(SharedPrefixScorer(vision), model, batch)
    passes.clear()
    gradients(SharedPrefixScorer(vision), model, batch)
    assert passes == [False]


@pytest.mark.parametrize(
    "modules",
    [r".*visual.*\.qkv", r".*visual\.merger\.mlp\.0"],
    ids=["adapter in the tower", "adapter in the projector"],
)
def test_whatever_is_trained_gets_its_gradient(modules: str, tmp_path: Path) -> None:
    model, processor = lora("qwen2_5_vl", modules)
    batch = collate(processor, sample_groups(2, tmp_path, images=1))
    pixels, features = (
        gradients(SharedPrefixScorer(), model, batch),
        gradients(SharedPrefixScorer(FrozenVision()), model, batch),
    )
    assert pixels[1] and all("visual" in name for name in pixels[1])
    assert pixels[1].keys() == features[1].keys()
    for name, gradient in pixels[1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(features[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_freezing_is_looked_up_in_every_gradients(tmp_path: Path) -> None:
    """A second adapter in the tower, inactive when the tower was first looked at, is not forgotten."""
    model, processor = lora("qwen2_5_vl", r".*visual.*\.qkv")
    model.add_adapter("other", LoraConfig(r=2, target_modules=r".*visual.*\.qkv", init_lora_weights=False))
    batch = collate(processor, sample_groups(1, tmp_path))
    vision = FrozenVision()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inputs = Family().vision_inputs(batch, [1])
    assert "mm_encoder_outputs" in vision(model.get_base_model(), inputs)
    model.set_adapter("other")
    assert "pixel_values" in vision(model.get_base_model(), inputs)
    assert {n.split(".")[-2] for n in gradients(SharedPrefixScorer(vision), model, batch)[1]} == {"other"}


def test_full_finetuning_keeps_pixels(tmp_path: Path) -> None:
    processor = tiny_processor("llava")
    model = tiny_model("llava", processor)
    inputs = Family().vision_inputs(collate(processor, sample_groups(1, tmp_path)), [1])
    assert FrozenVision()(model, inputs) is inputs
    text = Family().vision_inputs(collate(processor, sample_groups(1, tmp_path, images=0)), [1])
    assert FrozenVision()(model.requires_grad_(False), text) is text
