"""Models told apart by content: digests of weights, of tensors and of folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cwdpo.files import file_digest, read_json, text_digest

__all__ = ["folder_digest", "hub_revision", "state_digest", "tensor_digest"]

_ENDINGS = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Of the files that say what a model is."""


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
    """Return the SHA-256 of a model directory's weights and settings, of an adapter's also those of its base.

    Of a hub id, the digest of its name. In the life of a process a file is read once, as long as its size, times and
    inode stay.
    """
    folder = Path(path)
    if not folder.is_dir():
        return text_digest(str(path))
    files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS)
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(_digest, files))
    base = _base_of_adapter(folder)
    parts = [part for file, digest in zip(files, digests, strict=True) for part in (file.name, digest)]
    return text_digest(*parts, *([folder_digest(base)] if base is not None and base != folder else []))


def _base_of_adapter(folder: Path) -> Path | None:
    """Return the directory of the model that an adapter belongs to; None of a base on a hub, and of other models."""
    settings = folder / "adapter_config.json"
    base = read_json(settings).get("base_model_name_or_path") if settings.is_file() else None
    return Path(base) if isinstance(base, str) and Path(base).is_dir() else None


def hub_revision(path: str) -> str | None:
    """Return the commit of a hub id that lies on this machine; None of a directory, and where none lies here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(path).is_dir():
        return None
    try:
        found = (try_to_load_from_cache(path, name) for name in ("config.json", "adapter_config.json"))
        return next((Path(file).parent.name for file in found if isinstance(file, str)), None)
    except HFValidationError:
        return None


def _digest(file: Path) -> str:
    facts = file.stat()
    return _digest_of(file, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)


@lru_cache(maxsize=4096)
def _digest_of(file: Path, *stamp: int) -> str:
    return file_digest(file)
