"""FSDP2 among processes on CPUs.

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

SETTINGS = {
    "fsdp2": FSDP2,
    "fsdp2-read-by-all": FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"},
    "fsdp1": FSDP2 | {"FSDP_VERSION": "1"},
}


def shard_on_cpu(kind: str) -> None:
    """Set up the process group, and the settings."""
    settings = {"ACCELERATE_TORCH_DEVICE": "cpu"} | SETTINGS[kind]
    os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
    distributed.init_process_group("gloo")
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
