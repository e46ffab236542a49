"""FSDP2 and DeepSpeed among processes on CPUs.

accelerate shards on GPUs only; here it is told that gloo is a backend of GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
"""What `accelerate launch` sets with `recipes/accelerate/fsdp2.yaml`."""

ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "DS_ACCELERATOR": "cpu",
}
"""What it sets with `recipes/accelerate/zero2.yaml` and `zero3.yaml`, but for the stage."""

OFFLOAD = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
}

SETTINGS = {
    "fsdp2": FSDP2,
    "fsdp2-read-by-all": FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"},
    "fsdp1": FSDP2 | {"FSDP_VERSION": "1"},
    "zero2": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "zero3-offload": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"} | OFFLOAD,
}


def shard_on_cpu(kind: str) -> None:
    """Set up the process group, and the settings."""
    settings = {"ACCELERATE_TORCH_DEVICE": "cpu"} | SETTINGS[kind]
    os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
    if kind.startswith("fsdp"):
        distributed.init_process_group("gloo")
    else:
        import deepspeed

        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def backend(*_: object, **__: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = backend


def in_processes(count: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Fork `count` processes with a gloo group; return what `work(rank)` found in each, by rank.

    Args:
        count: How many.
        work: What each of them does.
        folder: An empty one, for what they say to each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.start_processes(_work, (count, work, folder), nprocs=count, start_method="fork")
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(count)]


def _work(rank: int, count: int, work: Callable[[int], Any], folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    found = work(rank)
    distributed.destroy_process_group()
    torch.save(found, folder / str(rank))
