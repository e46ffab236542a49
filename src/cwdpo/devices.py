"""The device that models run on: torch's accelerator (a GPU, or Apple's), or the CPU where there is none."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from cwdpo.launcher import is_set

__all__ = [
    "RandomState",
    "capture_random",
    "device",
    "device_name",
    "empty_cache",
    "has_accelerator",
    "has_float64",
    "peak_memory",
    "restore_random",
    "stay_on_cpu",
    "to_float64",
]


def device() -> torch.device:
    """Return where models run, in training and outside of it: the choice that accelerate makes too.

    `accelerate launch --cpu` (ACCELERATE_USE_CPU) keeps everything on the CPU.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None or is_set("ACCELERATE_USE_CPU") else found


def stay_on_cpu() -> None:
    """Let this process, and those that it starts, compute on the CPU whatever there is."""
    os.environ["ACCELERATE_USE_CPU"] = "true"


def has_accelerator() -> bool:
    """Whether models run elsewhere than on the CPU."""
    return device().type != "cpu"


def device_name() -> str:
    """Return the name of this process's GPU ("NVIDIA H100 80GB HBM3"), or the device's type (cpu, mps)."""
    named = _of_device("get_device_name")
    return device().type if named is None else str(named())


def peak_memory() -> int:
    """Return the most memory used so far in bytes: allocated on the GPU or, without one, resident in the process."""
    allocated = _of_device("max_memory_allocated")
    if allocated is not None:
        return int(allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def empty_cache() -> None:
    """Give memory that torch holds and nobody uses back to the device."""
    empty = _of_device("empty_cache")
    if empty is not None:
        empty()


@dataclass(frozen=True)
class RandomState:
    """Torch's random state on the CPU and on this process's accelerator, where there is one."""

    cpu: torch.Tensor
    accelerator: torch.Tensor | None


def capture_random() -> RandomState:
    """Return torch's random state."""
    captured = _of_device("get_rng_state")
    return RandomState(torch.get_rng_state(), None if captured is None else captured())


def restore_random(state: RandomState) -> None:
    """Put torch's random state back."""
    torch.set_rng_state(state.cpu)
    restored = _of_device("set_rng_state")
    if state.accelerator is not None and restored is not None:
        restored(state.accelerator)


def to_float64(values: torch.Tensor) -> torch.Tensor:
    """Return numbers in double precision: where they are, or on the CPU where their device has none (Apple's)."""
    return (values if has_float64(values.device) else values.cpu()).double()


@cache
def has_float64(where: torch.device) -> bool:
    """Whether a device computes in double precision (Apple's does not)."""
    try:
        torch.zeros((), dtype=torch.float64, device=where)
    except TypeError:
        return False
    return True


def _of_device(name: str) -> Any:
    """Return a function of the accelerator's module (torch.cuda, torch.mps, …), or None where there is none."""
    here = device()
    return None if here.type == "cpu" else getattr(torch.get_device_module(here), name, None)
