"""Models from disk: whole or refused; frozen parts, adapters, content identity."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from cwdpo.errors import ModelError
from cwdpo.models.identity import state_digest
from cwdpo.models.loading import add_lora, load_model, load_weights, sequence_limit
from cwdpo.models.model_checks import require_model
from cwdpo.models.parts import freeze_parts, part_of
from cwdpo.models.processors import load_processor
from cwdpo.recipe import LoraSection, ModelSection
from tiny_models import FAMILIES, tiny_processor
from tiny_training import clone, differing, fresh, logps_of, lora, rows, train_sft, weights

Folder = Callable[[str], Path]


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_each_family(family: str) -> None:
    """Every family has all three parts; language holds the embeddings, the layers and the head."""
    model, _ = fresh(family)
    names: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        names.setdefault(part_of(name), []).append(name)
    assert set(names) == {"vision", "projector", "language"}
    assert any("lm_head" in name for name in names["language"])
    assert any("embed_tokens" in name for name in names["language"])
    assert any("layers.1" in name for name in names["language"])
    assert not any("language_model" in name for name in [*names["vision"], *names["projector"]])


def test_names_of_parts() -> None:
    for name, part in {
        "model.visual.blocks.0.attn.qkv.weight": "vision",
        "model.visual.merger.mlp.0.weight": "projector",
        "model.visual.deepstack_merger_list.0.norm.weight": "projector",
        "base_model.model.model.vision_tower.encoder.layers.0.mlp.fc1.lora_A.default.weight": "vision",
        "model.connector.modality_projection.proj.weight": "projector",
        "model.multi_modal_projector.linear_1.bias": "projector",
        "model.language_model.layers.0.self_attn.q_proj.weight": "language",
        "lm_head.weight": "language",
    }.items():
        assert part_of(name) == part, name


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_load_model(family: str, tiny_folder: Folder, tmp_path: Path) -> None:
    """What comes from disk scores as what was saved; full finetuning is in float32 even where the file is not."""
    groups = rows(2, tmp_path)
    loaded = load_model(ModelSection(path=str(tiny_folder(family))))
    want = logps_of(fresh(family)[0], tiny_processor(family), groups)
    torch.testing.assert_close(logps_of(loaded, tiny_processor(family), groups), want, rtol=1e-6, atol=1e-5)
    section = ModelSection(path=str(tiny_folder(family)), dtype="bfloat16")
    assert load_model(section).dtype == torch.float32
    assert load_model(section, trainable=False).dtype == torch.bfloat16
    adapted = section.model_copy(update={"lora": LoraSection()})
    assert load_model(adapted).dtype == torch.bfloat16
    assert loaded.config.use_cache is False


@pytest.mark.parametrize("dora", [False, True])
def test_load_adapter(dora: bool, tiny_folder: Folder, tmp_path: Path) -> None:
    """A folder with an adapter gives base and adapter, trainable or not."""
    adapters = lora(use_dora=dora)
    groups = rows(2, tmp_path)
    base = load_model(ModelSection(path=str(tiny_folder("llava"))))
    trainer = train_sft(base, tiny_processor("llava"), groups, tmp_path / "run", peft_config=adapters, max_steps=1)
    trainer.save_model(str(tmp_path / "adapter"))
    want = logps_of(trainer.model, tiny_processor("llava"), groups)
    for trainable in (True, False):
        loaded = load_model(ModelSection(path="unused"), tmp_path / "adapter", trainable=trainable)
        assert isinstance(loaded, PeftModel)
        assert any(p.requires_grad for p in loaded.parameters()) == trainable
        torch.testing.assert_close(logps_of(loaded, tiny_processor("llava"), groups), want, rtol=1e-6, atol=1e-5)


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def drop_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, file, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    "change",
    [
        lambda file: {name.replace("base_model.model.", "base_model.model.other."): w for name, w in file.items()},
        lambda file: {name: w for name, w in file.items() if "layers.0.self_attn.q_proj.lora_B" not in name},
        lambda file: {name: w for name, w in file.items() if "lora_" in name},
        lambda file: file | {name.replace("layers.1.", "layers.7."): w for name, w in file.items()},
        lambda file: {name: w[:1] for name, w in file.items()},
    ],
    ids=["other names", "one is missing", "without the projector", "more layers", "other shapes"],
)
def test_adapters_that_do_not_fit(change: Callable[[Weights], Weights], tiny_folder: Folder, tmp_path: Path) -> None:
    """Nothing is left at its random start, and nothing in the file is left out."""
    section = ModelSection(path=str(tiny_folder("llava")), train_fully=["projector"], lora=LoraSection(r=2))
    model = add_lora(load_model(section), section, LoraSection(r=2))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert isinstance(load_model(section, tmp_path), PeftModel)
    save_file({name: w.clone() for name, w in change(load_file(file)).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=str(tmp_path)) as caught:
        load_model(section, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.bin", "x" * 300, "nul\0", "nowhere", "a/b/c", "./a", "~/a"])
def test_what_is_no_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    for use in (require_model, load_processor, lambda path: load_model(ModelSection(path=path))):
        with pytest.raises(ModelError) as caught:
            use(name)
        assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_a_pipe_among_the_files(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder("llava"), tmp_path / "model")
    os.mkfifo(folder / "more.safetensors")
    with pytest.raises(ModelError, match=r"more\.safetensors"):
        require_model(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_load_weights(family: str, tmp_path: Path) -> None:
    """Into a model in memory, bitwise, under whatever names the family has on disk."""
    source = fresh(family, seed=1)[0]
    source.save_pretrained(tmp_path / "saved")
    target = fresh(family)[0].train()
    for parameter in target.parameters():
        parameter.requires_grad_(False)
    assert differing(weights(target), weights(source))
    load_weights(target, tmp_path / "saved")
    assert not differing(weights(target), weights(source))
    assert target.training
    assert not any(p.requires_grad for p in target.parameters())


def test_load_weights_refuses_a_part(tmp_path: Path) -> None:
    source = fresh()[0]
    source.save_pretrained(tmp_path)
    drop_weight(tmp_path)
    with pytest.raises(ModelError, match="1 weights are missing"):
        load_weights(source, tmp_path)
    truncate(tmp_path)
    with pytest.raises(ModelError, match="the weights cannot be read"):
        load_weights(source, tmp_path)


def test_freeze_parts() -> None:
    model, _ = fresh()
    freeze_parts(model, ["vision", "language"])
    assert {part_of(n) for n, p in model.named_parameters() if p.requires_grad} == {"projector"}
    with pytest.raises(ModelError, match="leaves nothing to train"):
        freeze_parts(model, ["projector"])
    text = torch.nn.ModuleDict({"layers": torch.nn.Linear(2, 2)})
    with pytest.raises(ModelError, match="names vision, but ModuleDict has no such part"):
        freeze_parts(text, ["vision"])


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_places(family: str) -> None:
    """all-linear without the head; none in frozen parts; a part trained in full has no adapter but its own copy."""
    section = ModelSection(freeze=["vision"], train_fully=["projector"], lora=LoraSection(r=2))
    model = add_lora(fresh(family)[0], section, LoraSection(r=2))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    adapters = [n for n in trained if "lora_" in n]
    assert adapters
    assert {part_of(n) for n in adapters} == {"language"}
    whole = [n for n in trained if "lora_" not in n]
    assert whole
    assert all("modules_to_save" in n and part_of(n) == "projector" for n in whole)
    assert not any("lm_head" in n for n in adapters)


def test_dora_trains_sizes_beside_directions(tmp_path: Path) -> None:
    """One size for every output of an adapted layer, in float32; before the first update the model is its base."""
    groups, processor = rows(2, tmp_path), tiny_processor("llava")
    base = fresh("llava")[0]
    want = logps_of(base, processor, groups)
    adapters = LoraSection(r=2, dora=True)
    model = add_lora(base, ModelSection(freeze=["vision", "projector"], lora=adapters), adapters)
    sizes = {n: p for n, p in model.named_parameters() if "magnitude" in n}
    matrices = [n for n, p in model.named_parameters() if "lora_B" in n]
    assert len(sizes) == len(matrices) > 0
    assert all(p.requires_grad and p.dtype == torch.float32 and p.ndim == 1 for p in sizes.values())
    torch.testing.assert_close(logps_of(model, processor, groups), want, rtol=1e-5, atol=1e-4)


def test_lora_without_a_place() -> None:
    with pytest.raises(ModelError, match=r"model\.lora: no adapter could be placed"):
        add_lora(fresh()[0], ModelSection(), LoraSection(target_modules=["no_such_layer"]))


def test_sequence_limit() -> None:
    """The tiny models know 2048 positions."""
    model, _ = fresh()
    assert sequence_limit(model, None) == 2048
    assert sequence_limit(model, 100) == 100
    assert sequence_limit(model, 5000) == 2048


def test_state_digest() -> None:
    """Content, not identity: one bit of one weight changes it; adapters count unless they are left out."""
    model, _ = fresh()
    digest = state_digest(model)
    assert digest == state_digest(clone(model))
    other = clone(model)
    with torch.no_grad():
        other.lm_head.weight[0, 0] = torch.nextafter(other.lm_head.weight[0, 0], torch.tensor(9.0))
    assert state_digest(other) != digest
    assert state_digest(clone(model).bfloat16()) != digest
    found: dict[str, Any] = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        section = ModelSection(train_fully=["projector"], lora=LoraSection(r=2))
        found[str(seed)] = add_lora(clone(model), section, LoraSection(r=2))
    assert state_digest(found["1"]) != state_digest(found["2"])
    one, two = (state_digest(m, without_adapters=True) for m in found.values())
    assert one == two
