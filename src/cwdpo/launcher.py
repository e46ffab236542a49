"""The switches that accelerate's launcher sets in the environment."""

from __future__ import annotations

import os

from cwdpo.errors import RecipeError

__all__ = ["is_set", "refuse_deepspeed"]


def is_set(name: str) -> bool:
    """Whether a switch in the environment is on, in one of the words that accelerate takes."""
    return os.environ.get(name, "").lower() in ("1", "true", "t", "yes", "y", "on")


def refuse_deepspeed() -> None:
    """Refuse a launch with DeepSpeed before any work.

    Raises:
        RecipeError: accelerate was told to use DeepSpeed.
    """
    if is_set("ACCELERATE_USE_DEEPSPEED"):
        error = RecipeError(
            "DeepSpeed is not supported; use FSDP2: accelerate launch --config_file recipes/accelerate/fsdp2.yaml …"
        )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            error.told = os.environ.get("RANK", "0") != "0"  # every process finds it, the first one says it
        raise error
