"""A base in 4 bits under adapters: what is quantised, that it is the same every time, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.errors import ModelError, RecipeError
from cwdpo.models.identity import state_digest
from cwdpo.models.loading import add_lora, load_model
from cwdpo.models.modes import inference
from cwdpo.models.parts import part_of
from cwdpo.models.quantized import quantized_flops, require_bitsandbytes, weight_count
from cwdpo.recipe import LoraSection, ModelSection
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from cwdpo.training.callbacks.throughput import count_arithmetic
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer
from tiny_models import tiny_processor
from tiny_training import QUIET, logps_of, rows, weights

Folder = Callable[[str], Path]

ADAPTERS = LoraSection(r=4, alpha=8)


def section(folder: Path | str, **changes: Any) -> ModelSection:
    return ModelSection(**{"path": str(folder), "quantization": "nf4", "lora": ADAPTERS, **changes})


def adapted(folder: Path, **changes: Any) -> Any:
    asked = section(folder, **changes)
    torch.manual_seed(0)
    return add_lora(load_model(asked), asked, ADAPTERS)


@pytest.fixture
def qwen(tiny_folder: Folder) -> Path:
    pytest.importorskip("bitsandbytes")
    return tiny_folder("qwen2_5_vl")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "smolvlm"])
def test_what_is_quantised(family: str, tiny_folder: Folder) -> None:
    """The matrices of the language model's layers, and nothing else: 0.5 bytes a weight and 1/64 for their scales."""
    pytest.importorskip("bitsandbytes")
    model, plain = load_model(section(tiny_folder(family))), load_model(ModelSection(path=str(tiny_folder(family))))
    whole = dict(plain.named_parameters())
    packed = {name: p for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert set(packed) == {
        name for name, p in whole.items() if part_of(name) == "language" and ".layers." in name and p.ndim == 2
    }
    for name, parameter in packed.items():
        n = whole[name].numel()
        assert weight_count(parameter) == n and parameter.numel() == n // 2
        assert parameter.quant_state.absmax.numel() == n // 64 and parameter.quant_state.absmax.dtype == torch.uint8
    for name, parameter in model.named_parameters():
        if name not in packed:
            assert torch.equal(parameter, whole[name]), name
    assert not any(p.requires_grad for p in packed.values())


def test_numbers_are_rounded_to_sixteen_levels(qwen: Path) -> None:
    """A weight is off by less than half of the widest gap between nf4's levels (0.3039), times its block's largest
    (the scale itself is rounded to 8 bits)."""
    import bitsandbytes

    model, plain = load_model(section(qwen)), load_model(ModelSection(path=str(qwen)))
    assert {m.weight.quant_state.shape[-1] % 64 for m in model.modules() if hasattr(m, "quant_state")} == {0, 32}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            found = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            want = plain.get_submodule(name).weight.detach()
            largest = want.reshape(-1, 64).abs().amax(-1, keepdim=True)
            off = (found - want).reshape(-1, 64).abs() / largest
            assert off.max() < 0.3039 / 2 + 0.02
            assert 0.01 < off.mean() < 0.08


def test_content_identity(qwen: Path) -> None:
    """The same every time it is loaded; another than that of the weights before; adapters count or are left out."""
    one, two = load_model(section(qwen)), load_model(section(qwen))
    assert state_digest(one) == state_digest(two) != state_digest(load_model(ModelSection(path=str(qwen))))
    model = adapted(qwen)
    assert state_digest(model, without_adapters=True) == state_digest(one) != state_digest(model)


def test_shared_scorer_equals_separate(qwen: Path, tmp_path: Path) -> None:
    encoder = PromptEncoder(tiny_processor("qwen2_5_vl"))
    model = adapted(qwen)
    _shake(model)
    batch = Batch(tuple(encoder.encode(g) for g in rows(3, tmp_path, responses=3)))
    assert isinstance(AutoScorer().scorer_for(model, batch), SharedPrefixScorer)
    found: list[Any] = []
    for scorer in (SharedPrefixScorer(FrozenVision()), SeparateScorer()):
        model.zero_grad()
        scores = scores_from_logits(scorer(model, batch))
        scores.logp_sum.sum().backward()
        found.append((scores.logps.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-3)


def _shake(model: Any) -> None:
    """Give fresh adapters an effect."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)


@pytest.mark.parametrize("dora", [False, True])
def test_trained_saved_and_loaded(dora: bool, qwen: Path, tmp_path: Path) -> None:
    """An update changes the adapters alone; what is saved is the adapter, and on the same base it scores the same."""
    asked = section(qwen, lora=LoraSection(r=4, alpha=8, dora=dora), train_fully=["projector"])
    torch.manual_seed(0)
    assert asked.lora is not None
    model = add_lora(load_model(asked), asked, asked.lora)
    before, processor, groups = weights(model), tiny_processor("qwen2_5_vl"), rows(4, tmp_path)
    args = SFTCConfig(str(tmp_path / "run"), **QUIET, max_steps=2)
    trainer = SFTCTrainer(model, args, groups, processing_class=processor)
    trainer.train()
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    trainer.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = load_model(asked, tmp_path / "adapter")
    assert torch.equal(logps_of(again, processor, groups), logps_of(model, processor, groups))


def test_reference_is_the_base_in_four_bits(qwen: Path, tmp_path: Path) -> None:
    """With fresh adapters, cached or live: before the first update every margin is 0, after it not."""
    processor, groups = tiny_processor("qwen2_5_vl"), rows(4, tmp_path)
    margins: dict[str, list[float]] = {}
    for reference in ("cached", "live"):
        model = load_model(section(qwen))
        args = CWDPOConfig(str(tmp_path / reference), **QUIET | {"max_steps": 2}, reference=reference)
        trainer = CWDPOTrainer(model, args=args, train_dataset=groups, processing_class=processor, peft_config=_peft())
        trainer.train()
        margins[reference] = [row["rewards/margins"] for row in trainer.state.log_history if "loss" in row]
    assert margins["cached"][0] == pytest.approx(0, abs=1e-5)
    assert abs(margins["cached"][1]) > 1e-3
    assert margins["cached"] == pytest.approx(margins["live"], abs=1e-4)


def _peft() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])


def test_flops_are_those_of_whole_weights(qwen: Path, tmp_path: Path) -> None:
    """torch's counter does not know bitsandbytes' product."""
    encoder = PromptEncoder(tiny_processor("qwen2_5_vl"))
    batch = Batch(tuple(encoder.encode(g) for g in rows(2, tmp_path)))
    found = [
        count_arithmetic(add_lora(load_model(asked), asked, ADAPTERS), SharedPrefixScorer(FrozenVision()), [batch])
        for asked in (section(qwen), section(qwen, quantization=None))
    ]
    assert quantized_flops() and found[0] == found[1]


def test_text_is_written(qwen: Path, tmp_path: Path) -> None:
    """Greedy answers of a model in 4 bits; evaluation and training mode compute the same."""
    from cwdpo.models.generation import generate

    model, processor = load_model(section(qwen), trainable=False), tiny_processor("qwen2_5_vl")

    def encode(prompts: Any) -> Any:
        return processor(text=list(prompts), padding=True, return_tensors="pt")

    texts = generate(model, processor.tokenizer, encode, ["a red square", "two"], max_new_tokens=4)
    assert texts == generate(model, processor.tokenizer, encode, ["a red square", "two"], max_new_tokens=4)
    inputs = encode(["a red square"])
    with inference(model):
        evaluated = model(**inputs).logits
    with torch.no_grad():
        assert torch.equal(evaluated, model.train()(**inputs).logits)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["model.quantization=nf4"], "model.quantization: nf4 needs model.lora"),
        (["model.quantization=int4", "model.lora={r: 2}"], "model.quantization"),
    ],
)
def test_what_a_recipe_cannot_ask(changes: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(None, changes)
    assert "\n" not in str(caught.value)


def test_without_bitsandbytes(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for attempt in (require_bitsandbytes, load_model):
        with pytest.raises(ModelError, match=r'needs bitsandbytes, .* pip install "cwdpo\[qlora\]"') as caught:
            attempt(section(tiny_folder("llava")))
        assert "\n" not in str(caught.value)


def test_weights_that_are_quantised_already(qwen: Path, tmp_path: Path) -> None:
    """A model saved in 4 bits goes on as it is under adapters, and cannot be trained itself."""
    model = load_model(section(qwen))
    model.save_pretrained(tmp_path / "packed")
    with pytest.raises(ModelError, match=r"are quantised, and cannot be trained; set model\.quantization: nf4"):
        load_model(ModelSection(path=str(tmp_path / "packed")))
    assert state_digest(load_model(section(tmp_path / "packed"))) == state_digest(model)


def test_experts_are_refused(tiny_folder: Folder) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ModelError, match="not linear layers") as caught:
        load_model(section(tiny_folder("qwen3_vl_moe")))
    assert "leave model.quantization out" in str(caught.value)
