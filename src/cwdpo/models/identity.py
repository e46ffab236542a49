"""Models told apart by content: digests of weights, of tensors and of folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cwdpo.files import file_digest, text_digest

__all__ = ["folder_digest", "state_digest", "tensor_digest"]


def tensor_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of tensors (names, shapes, types, bytes) in their order, in hex."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        raw: Any = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        digest.update(memoryview(raw))
    return digest.hexdigest()


def state_digest(model: Any, *, without_adapters: bool = False) -> str:
    """Return the SHA-256 of every tensor of the model's state (names, shapes, types, bytes), in hex.

    Args:
        model: The model.
        without_adapters: Leave out what PEFT added: the digest is that of the base before.
    """
    state: dict[str, Any] = model.get_base_model().state_dict() if without_adapters else model.state_dict()
    if without_adapters:
        added = (f".{model.base_model.prefix}", ".modules_to_save.")
        state = {
            name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
            for name, tensor in state.items()
            if not any(mark in name for mark in added)
        }
    return tensor_digest(sorted(state.items()))


def folder_digest(path: str | Path) -> str:
    """Return the SHA-256 of a model directory's weights and settings; of a hub id, the digest of its name."""
    folder = Path(path)
    if not folder.is_dir():
        return text_digest(str(path))
    names = sorted(
        p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model")
    )
    return text_digest(*(part for name in names for part in (name, file_digest(folder / name))))
