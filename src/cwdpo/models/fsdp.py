"""Models whose weights are sharded over the processes (FSDP2)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from cwdpo.errors import ModelError, RunError, one_line
from cwdpo.models.meta_init import wrap_dealt

__all__ = [
    "LARGEST_WHOLE",
    "is_sharded",
    "is_sharded_weight",
    "load_shards",
    "shards_of",
    "share_weights",
    "too_large",
    "wrap_method",
]

LARGEST_WHOLE = 0.4
"""Of a GPU's memory: the evaluation holds two models at once, and they need room to work."""

_WRAPPERS = {"FSDPModule", "FullyShardedDataParallel"}
"""Names of the classes by which FSDP2 and FSDP1 share a module's weights."""


def is_sharded(model: Any) -> bool:
    """Whether processes hold the model's weights together: it is run by all of them in step, or by none.

    A wrapper tells it also at a moment when the weights it gathered are whole.
    """
    if any(kind.__name__ in _WRAPPERS for module in model.modules() for kind in type(module).__mro__):
        return True
    return any(is_sharded_weight(weight) for weight in model.parameters())


def is_sharded_weight(weight: Any) -> bool:
    """Whether this process holds a part of a weight, which a pass of the wrapped model alone puts together."""
    return type(weight).__name__ in ("DTensor", "FlatParameter")


def wrap_method(model: Any, name: str) -> None:
    """Let a method put together what a forward pass of the whole model does, where FSDP2 shares its weights.

    `generate` runs the picture encoder before any forward pass.
    """
    if "FSDPModule" in {kind.__name__ for kind in type(model).__mro__} and name not in vars(model):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(model, name)


def too_large(model: Any) -> bool:
    """Whether a model is not to be held whole by every process: it takes more than 0.4 of a GPU, or there is none."""
    if not torch.cuda.is_available():
        return True
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    return size > LARGEST_WHOLE * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def share_weights(model: Any) -> Any:
    """Share the weights of a model that is only read among all processes, layer by layer (FSDP2), in place.

    They are computed with as they are, so results are those of the whole model. All processes call this together; where
    some have a bare model, they get their parts from the first process, which has it whole.

    Raises:
        ModelError: Its layers are not known, or a bare model is not that of the first process.
    """
    from torch.distributed.fsdp import fully_shard

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names: set[str] = set(inner._no_split_modules or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(
            f"{type(inner).__name__} does not say what its layers are (_no_split_modules), and cannot be shared among "
            "processes; use DDP"
        )
    model.requires_grad_(False)

    def wrap(model: Any) -> Any:
        for layer in layers:
            fully_shard(layer)
        return fully_shard(model)

    return wrap_dealt(model, wrap)


def shards_of(checkpoint: Path) -> Path | None:
    """Return the folder of a checkpoint in which FSDP's processes kept their parts of the model, None without one."""
    folder = checkpoint / "pytorch_model_fsdp_0"
    return folder if folder.is_dir() else None


def load_shards(model: Any, folder: Path) -> None:
    """Put the weights that processes kept in parts into a model, its active adapter's where it has adapters.

    Args:
        model: Shared among processes, which all call this together; or whole, in one process.
        folder: See `shards_of`.

    Raises:
        RunError: They cannot be read.
    """
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        state: dict[str, Any] = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
        _read(state, folder, alone=not is_sharded(model))
        set_peft_model_state_dict(model, state, adapter_name=model.active_adapter)
        return
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    state = get_model_state_dict(model)
    _read(state, folder, alone=not is_sharded(model))
    set_model_state_dict(model, state)


def _read(state: dict[str, Any], folder: Path, *, alone: bool) -> None:
    """Fill tensors, or this process's parts of them, in place."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process alone is meant
            load({"model": state}, storage_reader=FileSystemReader(folder), no_dist=alone)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise RunError(
            f"{folder}: the weights cannot be read ({type(reason).__name__}: {one_line(reason, 120)}); put them back, "
            "or delete that checkpoint to resume from the one before"
        ) from None
