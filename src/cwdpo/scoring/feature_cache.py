"""Image features that stay from step to step: in memory up to a size, and in a folder where one is given."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cwdpo.errors import RunError, one_line
from cwdpo.files import text_digest
from cwdpo.models.identity import tensor_digest

__all__ = ["FeatureCache", "Features", "merge_features", "pack_features"]

logger = logging.getLogger(__name__)

GIB = 2**30

Features = dict[str, Tensor]
"""What the image encoder gave for the images of one prompt: its nested output with the places as names, `pooled.0`."""

_FIELDS = {"pooled": "pooler_output", "deepstack": "deepstack_features"}
"""What language models read of an image encoder's output."""


def pack_features(output: Any) -> Features:
    """Return the part of an image encoder's output that a language model reads, flat."""
    packed: Features = {}
    for name, field in _FIELDS.items():
        _flatten(getattr(output, field, None), name, packed)
    return packed


def _flatten(value: Any, name: str, into: Features) -> None:
    if isinstance(value, Tensor):
        into[name] = value.detach()
    elif value is not None:
        for index, part in enumerate(value):
            _flatten(part, f"{name}.{index}", into)


def _nested(packed: Features, name: str) -> Any:
    """Return what `_flatten` took apart: a tensor, or lists of tensors."""
    if name in packed:
        return packed[name]
    parts: list[Any] = []
    while (part := f"{name}.{len(parts)}") in packed or any(key.startswith(f"{part}.") for key in packed):
        parts.append(_nested(packed, part))
    return parts


def merge_features(rows: Sequence[Features]) -> Any:
    """Return the output that the image encoder gives for the images of several prompts at once."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    merged: Any = BaseModelOutputWithPooling(pooler_output=_joined([_nested(row, "pooled") for row in rows]))
    layers = [_nested(row, "deepstack") for row in rows]
    if layers and layers[0]:
        merged.deepstack_features = [_joined(list(parts)) for parts in zip(*layers, strict=True)]
    return merged


def _joined(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [image for part in parts for image in part]


class FeatureCache:
    """Features by content key, bounded in bytes.

    The least recently used goes first, but only when nothing has asked for it during two passes over the data: in
    every pass each image comes once, and plain least-recently-used would drop every image just before its turn as soon
    as the data is larger than the cache. What does not fit is computed again.

    Args:
        limit: Bytes held in memory.
        folder: Where features are kept on disk too, for later runs; nothing more is written when it is full.
        folder_limit: Bytes kept there.
    """

    def __init__(self, limit: int, folder: Path | None = None, folder_limit: int = 0) -> None:
        self.limit, self.folder, self.folder_limit = limit, folder, folder_limit
        self.bytes, self.hits, self.misses = 0, 0, 0
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._asked: dict[str, int] = {}
        self._lookups = 0
        self._folder_bytes = 0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._folder_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            except OSError as error:
                raise RunError(f"model.vision_cache_folder: {folder} cannot be used: {one_line(error)}") from error

    @classmethod
    def of(cls, gib: float, folder: str | None = None, folder_gib: float = 0.0) -> FeatureCache | None:
        """Return a cache of that size, or None where there is to be none."""
        if gib <= 0 and folder is None:
            return None
        return cls(int(gib * GIB), Path(folder) if folder is not None else None, int(folder_gib * GIB))

    def get(self, key: str, compute: Callable[[], Features]) -> Features:
        """Return the features of a key, on the CPU where they were kept and as `compute` gives them where not."""
        self._lookups += 1
        self._asked[key] = self._lookups
        if key in self._kept:
            self._kept.move_to_end(key)
            self.hits += 1
            return self._kept[key]
        found = self._read(key)
        if found is not None:
            self.hits += 1
            self._keep(key, found)
            return found
        self.misses += 1
        found = compute()
        if self._has_room(_size(found)) or self.folder is not None:
            copy = {name: value.to("cpu", copy=True).contiguous() for name, value in found.items()}
            self._keep(key, copy)
            self._write(key, copy)
        return found

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes fit, or do when what nobody asks for any more is let go."""
        room = self.limit - self.bytes
        for key, features in self._kept.items():
            if room >= size or self._lookups - self._asked[key] <= 2 * len(self._asked):
                break
            room += _size(features)
        return room >= size

    def _keep(self, key: str, features: Features) -> None:
        size = _size(features)
        if not self._has_room(size):
            return
        while self.bytes + size > self.limit:
            gone, old = self._kept.popitem(last=False)
            self.bytes -= _size(old)
            del self._asked[gone]
        self._kept[key] = features
        self.bytes += size

    def _file(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> Features | None:
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as entry:
                found: Features = {name: entry.get_tensor(name) for name in sorted(entry.keys())}
                if (entry.metadata() or {}).get("sha256") == _digest(key, found):
                    return found
            reason = "its content is not what was written"
        except (OSError, SafetensorError) as error:
            reason = one_line(error)
        logger.warning("%s: cannot be used and is computed again: %s", file, reason)
        with suppress(OSError):
            file.unlink()
        return None

    def _write(self, key: str, features: Features) -> None:
        file, size = self._file(key), _size(features)
        if file is None or self._folder_bytes + size > self.folder_limit:
            return
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            # Not flushed to disk as other files are: an entry that is not whole is found by its digest.
            save_file(features, temporary, metadata={"sha256": _digest(key, features)})
            temporary.replace(file)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.folder_limit = 0
            logger.warning("%s: no more image features are kept on disk: %s", self.folder, one_line(error))
            return
        self._folder_bytes += size


def _digest(key: str, features: Features) -> str:
    return text_digest(key, tensor_digest(sorted(features.items())))


def _size(features: Features) -> int:
    return sum(value.numel() * value.element_size() for value in features.values())
