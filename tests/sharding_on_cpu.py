"""FSDP2 among processes on CPUs. accelerate shards on GPUs only; here it is told that gloo is a backend of GPUs."""

from __future__ import annotations

import os

SETTINGS = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch` sets with `fsdp_version: 2`."""


def shard_on_cpu() -> None:
    """Set up the process group, and the settings."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    torch.distributed.init_process_group("gloo")

    def backend(*_: object, **__: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = backend
