"""Activations in main memory between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["OffloadedActivations"]

_LEAST = 2**16
"""Bytes below which a tensor stays: many small copies cost more than they save."""


class OffloadedActivations(saved_tensors_hooks):
    """A block whose operations keep what their backward pass needs in main memory.

    torch's `save_on_cpu` copies weights too, and each view by itself. Here every storage travels once, however many
    views of it are kept. Weights and buffers stay where they are, and so do small tensors. With gradient checkpointing,
    what is kept is each layer's input. Copies are made in the order of the device's other work, through pinned memory,
    so that the processor does not wait for them; they are not overlapped with arithmetic.

    Args:
        model: Whose weights and buffers stay.
        least: Bytes from which a tensor travels; default 64 KiB.

    Attributes:
        kept: How many tensors were taken away.
        storages: How many storages they were on.
        bytes: How large those are together.
    """

    def __init__(self, model: Any, least: int | None = None) -> None:
        super().__init__(self._pack, lambda kept: kept if isinstance(kept, Tensor) else kept())
        self._least = _LEAST if least is None else least
        self._own = {_key(t) for t in (*model.parameters(), *model.buffers())}
        # A reference to a storage, even a weak one, keeps its key from being given to another.
        self._known: dict[tuple[int, torch.dtype], tuple[StorageWeakRef, Callable[[], Tensor]]] = {}
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
        if key not in self._known:
            whole = tensor.as_strided((size // tensor.element_size(),), (1,), 0)
            host, device = self.to_host(whole), whole.device
            self._known[key] = (StorageWeakRef(storage), cache(lambda: self.to_device(host, device)))
            self.storages += 1
            self.bytes += size
        self.kept += 1
        back, place = self._known[key][1], (tensor.size(), tensor.stride(), tensor.storage_offset())
        return lambda: back().as_strided(*place)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
