"""Activations in main memory between the forward and the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["OffloadedActivations"]

_LEAST = 2**16
"""Bytes below which a tensor stays: many small copies cost more than they save."""


class _Away:
    """A storage that is in main memory, and on the device again from when it is first asked for."""

    def __init__(self, hooks: OffloadedActivations, whole: Tensor) -> None:
        self._hooks, self._host, self._device = hooks, hooks.to_host(whole), whole.device
        self._here: Tensor | None = None

    def here(self) -> Tensor:
        """Return all numbers of the storage, on its device."""
        if self._here is None:
            self._here = self._hooks.to_device(self._host, self._device)
        return self._here


class _View:
    """A tensor on a storage that is away."""

    def __init__(self, away: _Away, tensor: Tensor) -> None:
        self._away = away
        self._place = tensor.size(), tensor.stride(), tensor.storage_offset()

    def tensor(self) -> Tensor:
        """Return the tensor."""
        return self._away.here().as_strided(*self._place)


class OffloadedActivations(saved_tensors_hooks):
    """A block whose operations keep what their backward pass needs in main memory.

    Every storage travels once, however many views of it are kept. Weights and buffers stay where they are, and so do
    small tensors. With gradient checkpointing, what is kept is each layer's input. Copies are made in the order of the
    device's other work, through pinned memory, so that the processor does not wait for them; they are not overlapped
    with arithmetic.

    Args:
        model: Whose weights and buffers stay.
        least: Bytes from which a tensor travels; default 64 KiB.

    Attributes:
        kept: How many tensors were taken away.
        storages: How many storages they were on.
        bytes: How large those are together.
    """

    def __init__(self, model: Any, least: int | None = None) -> None:
        super().__init__(self._pack, _unpack)
        self._least = _LEAST if least is None else least
        self._own = {_key(t) for t in (*model.parameters(), *model.buffers())}
        # A reference to a storage, even a weak one, keeps its key from being given to another.
        self._known: dict[tuple[int, torch.dtype], tuple[StorageWeakRef, _Away]] = {}
        self.kept = self.storages = self.bytes = 0

    def __exit__(self, *error: Any) -> None:
        """End the block: what was kept lives as long as the graph does."""
        super().__exit__(*error)
        self._known.clear()

    def to_host(self, whole: Tensor) -> Any:
        """Copy a storage's numbers into main memory."""
        host = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=whole.is_cuda)
        return host.copy_(whole, non_blocking=whole.is_cuda)

    def to_device(self, host: Any, device: torch.device) -> Tensor:
        """Copy them back."""
        return host.to(device, non_blocking=device.type == "cuda")

    def travels(self, tensor: Tensor) -> bool:
        """Whether a tensor is one that can be taken away."""
        return type(tensor) is Tensor and tensor.layout == torch.strided and not (tensor.is_conj() or tensor.is_neg())

    def _pack(self, tensor: Tensor) -> Any:
        if not self.travels(tensor):
            return tensor
        storage = tensor.untyped_storage()
        size, key = storage.nbytes(), (_key(tensor), tensor.dtype)
        if size < self._least or key[0] in self._own or size % tensor.element_size():
            return tensor
        known = self._known.get(key)
        if known is None:
            whole = tensor.as_strided((size // tensor.element_size(),), (1,), 0)
            known = self._known[key] = (StorageWeakRef(storage), _Away(self, whole))
            self.storages += 1
            self.bytes += size
        self.kept += 1
        return _View(known[1], tensor)


def _unpack(kept: Any) -> Tensor:
    return kept.tensor() if isinstance(kept, _View) else kept


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
