"""Activations in main memory: the same gradients to the last bit, every storage once, weights never."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from cwdpo.errors import ModelError
from cwdpo.models.loading import add_lora
from cwdpo.recipe import LoraSection, ModelSection
from cwdpo.training.configs import CWDPOConfig
from cwdpo.training.offloading import OffloadedActivations
from cwdpo.training.trainers import CWDPOTrainer
from tiny_training import QUIET, differing, fresh, rows, weights


def test_every_storage_once_and_weights_never() -> None:
    """x · w (4 × 8 numbers, w frozen), squared: the product is kept by the square alone, its rows are views of it."""
    layer = nn.Linear(8, 8, bias=False).requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)
    hooks = OffloadedActivations(layer, least=0)
    with hooks:
        product = layer(x)  # keeps w alone, which stays
        assert (hooks.kept, hooks.storages) == (0, 0)
        (product * product).sum()  # keeps it twice
        assert (hooks.kept, hooks.storages, hooks.bytes) == (2, 1, 4 * 8 * 4)
        left, right = product[:, :3], product.t()[3:]
        loss = (left * left).sum() + (right * right).sum()
        assert (hooks.kept, hooks.storages) == (6, 1)
    (found,) = torch.autograd.grad(loss, x)
    (want,) = torch.autograd.grad((layer(x) ** 2).sum(), x)
    torch.testing.assert_close(found, want)


def test_small_tensors_stay() -> None:
    x = torch.randn(16, requires_grad=True)
    hooks = OffloadedActivations(nn.Identity(), least=65)
    with hooks:
        (x * x).sum()
    assert hooks.kept == 0


def test_a_new_storage_at_an_old_address_is_another() -> None:
    """Storages that come and go during the block are not taken for each other."""
    x = torch.ones(64, requires_grad=True)
    hooks = OffloadedActivations(nn.Identity(), least=0)
    with hooks:
        total = sum((x * float(n)).square().sum() for n in range(1, 50))
    assert hooks.storages == 49
    assert isinstance(total, torch.Tensor)
    total.backward()
    assert x.grad is not None
    assert x.grad[0] == 2 * sum(n * n for n in range(1, 50))


def test_what_is_kept_goes_with_the_graph() -> None:
    """On the device nothing of it is left while it is away; in main memory nothing after the backward pass."""
    x = torch.randn(64, requires_grad=True)
    hosts: list[Any] = []

    class Watched(OffloadedActivations):
        def to_host(self, whole: torch.Tensor) -> Any:
            found = super().to_host(whole)
            hosts.append(weakref.ref(found))
            return found

    with Watched(nn.Identity(), least=0):
        middle = x * 2.0
        gone = weakref.ref(middle.untyped_storage())
        loss = middle.square().sum()
        del middle
    gc.collect()
    assert gone() is None and hosts and all(host() is not None for host in hosts)
    loss.backward()
    del loss
    gc.collect()
    assert all(host() is None for host in hosts)


@pytest.mark.parametrize(("lora", "checkpointing"), [(False, False), (True, True)])
def test_training_is_bitwise_the_same(
    lora: bool, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the hooks were at work: with checkpointing on the inputs of layers, without on much more."""
    groups, found = rows(4, tmp_path, images=1), []
    monkeypatch.setattr("cwdpo.training.offloading._LEAST", 0)
    seen: list[OffloadedActivations] = []
    leave = OffloadedActivations.__exit__

    def watched(self: OffloadedActivations, *error: Any) -> None:
        seen.append(self)
        leave(self, *error)

    monkeypatch.setattr(OffloadedActivations, "__exit__", watched)
    for offloading in (False, True):
        model, processor = fresh("qwen2_5_vl")
        if lora:
            torch.manual_seed(0)
            adapters = LoraSection(r=2, dropout=0.1)
            model = add_lora(model, ModelSection(lora=adapters), adapters)
        how = {"max_steps": 2, "activation_checkpointing": checkpointing, "activation_offloading": offloading}
        args = CWDPOConfig(str(tmp_path / str(offloading)), **QUIET | how)
        trainer = CWDPOTrainer(model, args=args, train_dataset=groups, processing_class=processor)
        trainer.train()
        found.append(weights(model))
        assert bool(seen) == offloading
    assert not differing(*found)
    assert len(seen) == 2
    assert all(hooks.kept >= hooks.storages > (2 if checkpointing else 40) for hooks in seen)
    matrices = {p.numel() * p.element_size() for p in model.parameters() if p.ndim > 1}
    assert matrices


def test_a_processor_without_gpu_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, processor = fresh("llava")
    args = CWDPOConfig(str(tmp_path), **QUIET, activation_offloading=True)
    CWDPOTrainer(model, args=args, train_dataset=rows(2, tmp_path), processing_class=processor)
    assert [r.getMessage() for r in caplog.records if "activation_offloading" in r.getMessage()] == [
        "activation_offloading: there is no GPU; activations are in main memory already, and nothing is saved"
    ]


def test_sharded_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = fresh("llava")
    args = CWDPOConfig(str(tmp_path), **QUIET, activation_offloading=True)
    made = Trainer.create_accelerator_and_postprocess

    def sharded(trainer: Trainer) -> None:
        made(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ModelError, match=r"activation_offloading: .* use DDP"):
        CWDPOTrainer(model, args=args, train_dataset=rows(2, tmp_path), processing_class=processor)
