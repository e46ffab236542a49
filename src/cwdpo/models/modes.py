"""How a model is run when it is only read."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from cwdpo.devices import capture_random, restore_random

__all__ = ["inference"]


@contextmanager
def inference(model: Any) -> Generator[None]:
    """Evaluate without gradients; training modes and RNG state are restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    random_state = capture_random()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        restore_random(random_state)
