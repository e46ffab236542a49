"""Weights that one of two processes reads: the other builds the model without, and both have what is in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from cwdpo.errors import ModelError
from cwdpo.models.fsdp import share_weights
from cwdpo.models.loading import add_lora, load_model
from cwdpo.models.meta_init import bare_copy, is_bare, wrap_dealt
from cwdpo.recipe import LoraSection, ModelSection
from sharding_on_cpu import in_processes
from tiny_models import FAMILIES, HYBRID, MORE_FAMILIES, tiny_model, tiny_processor


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Every weight and buffer of a model by all of its names, put together where it is shared."""
    found = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for name, t in found}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def saved(family: str, folder: Path, **changes: Any) -> Path:
    tiny_model(family, tiny_processor(family), **changes).save_pretrained(folder)
    return folder


def files_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of weights that are opened from now on."""
    opened, opens = list[str](), safetensors.safe_open

    def spy(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(file).name)
        return opens(file, *args, **kwargs)

    for module in ("transformers.modeling_utils", "peft.utils.save_and_load", "safetensors.torch", "safetensors"):
        monkeypatch.setattr(f"{module}.safe_open", spy, raising=False)
    return opened


Load = Callable[[bool], Any]
"""Loads a model, bare or not."""


def dealt(loads: dict[str, Load], folder: Path) -> None:
    """Two processes, one of which reads, hold what one that shares nothing holds; the other one opens no file."""

    def work(rank: int) -> list[tuple[dict[str, torch.Tensor], list[str], list[str]]]:
        found: list[tuple[dict[str, torch.Tensor], list[str], list[str]]] = []
        for load in loads.values():
            with pytest.MonkeyPatch.context() as patched:
                opened = files_opened(patched)
                model = load(rank > 0)
                assert is_bare(model) == (rank > 0)
                assert rank == 0 or all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
                found.append((tensors(share_weights(model)), training(model), opened))
        return found

    by_rank = in_processes(2, work, folder)
    for (name, load), *ranks in zip(loads.items(), *by_rank, strict=True):
        whole = load(False)
        for found, modes, _ in ranks:
            assert_same(found, tensors(whole))
            assert modes == training(whole), name
        assert [bool(opened) for *_, opened in ranks] == [True, False], name


def training(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if module.training]


def base(folder: Path, **settings: Any) -> Load:
    section = ModelSection(path=str(folder), **settings)
    return lambda bare: load_model(section, trainable=False, bare=bare)


def test_every_family(tmp_path: Path) -> None:
    """Also experts that are put together as they are read, buffers that no file holds, and weights with two names."""
    families = (*FAMILIES, *MORE_FAMILIES, HYBRID)
    loads = {family: base(saved(family, tmp_path / family)) for family in families}
    tied = tiny_model("qwen2_5_vl")
    tied.config.tie_word_embeddings = tied.config.text_config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")
    loads["tied"] = base(tmp_path / "tied", dtype="bfloat16")
    names = [{id(p) for p in load(False).parameters()} for load in (loads["tied"], loads["qwen2_5_vl"])]
    assert len(names[0]) == len(names[1]) - 1
    dealt(loads, tmp_path / "work")


def test_adapters(tmp_path: Path) -> None:
    """New ones start where they do in one process, and saved ones are read by the first process too."""
    folder = saved("qwen2_5_vl", tmp_path / "model")
    section = ModelSection(path=str(folder), dtype="bfloat16", train_fully=["projector"])

    def fresh(lora: LoraSection) -> Load:
        def load(bare: bool) -> Any:
            model = load_model(section, bare=bare)
            torch.manual_seed(5)
            return add_lora(model, section, lora)

        return load

    loads = {"lora": fresh(LoraSection(r=2)), "dora": fresh(LoraSection(r=4, dora=True, dropout=0.1))}
    made = loads["dora"](False)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.01)
    made.save_pretrained(tmp_path / "adapter")
    for trainable in (True, False):
        loads[f"saved-{trainable}"] = lambda bare, trainable=trainable: load_model(
            section, tmp_path / "adapter", trainable=trainable, bare=bare
        )
    wanted = {name: weight.requires_grad for name, weight in loads["saved-True"](False).named_parameters()}
    assert {name: weight.requires_grad for name, weight in loads["saved-True"](True).named_parameters()} == wanted
    dealt(loads, tmp_path / "work")


def test_a_shared_copy(tmp_path: Path) -> None:
    """A whole model stays whole, and a copy of it is shared."""

    def work(rank: int) -> tuple[dict[str, torch.Tensor], bool]:
        model = tiny_model("qwen2_5_vl")
        copied = bare_copy(model)
        assert is_bare(copied) and not is_bare(model)
        found = tensors(wrap_dealt(copied, share_weights, model))
        return found, all(torch.equal(t, found[name]) for name, t in tensors(model).items())

    for found, same in in_processes(2, work, tmp_path / "work"):
        assert_same(found, tensors(tiny_model("qwen2_5_vl")))
        assert same


def test_another_model_is_told_in_both(tmp_path: Path) -> None:
    whole = saved("qwen2_5_vl", tmp_path / "model")
    narrow = saved("qwen2_5_vl", tmp_path / "narrow", intermediate_size=80)

    def work(rank: int) -> str:
        try:
            share_weights(base(narrow if rank else whole)(rank > 0))
        except ModelError as error:
            return str(error)
        return ""

    first, second = in_processes(2, work, tmp_path / "work")
    assert first == second and "mlp.gate_proj.weight" in first and "fsdp_cpu_ram_efficient_loading: false" in first
