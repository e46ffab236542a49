"""What accelerate's launcher says: its switches in the environment, and what DeepSpeed's own file says about ZeRO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cwdpo.errors import RecipeError, one_line

__all__ = ["is_set", "launched_stage", "zero_section"]


def is_set(name: str) -> bool:
    """Whether a switch in the environment is on, in one of the words that accelerate takes."""
    return os.environ.get(name, "").lower() in ("1", "true", "t", "yes", "y", "on")


def zero_section(config: str) -> Mapping[str, Any]:
    """Return what a DeepSpeed configuration says about ZeRO.

    Args:
        config: As accelerate takes it: a JSON file, or JSON itself, also in base64.

    Raises:
        RecipeError: It cannot be read, or says nothing about ZeRO.
    """
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    try:
        found: Any = HfDeepSpeedConfig(config).config["zero_optimization"]
        if not isinstance(found, dict):
            raise TypeError("zero_optimization holds no settings")
    except KeyError:
        raise RecipeError(f"{one_line(config, 120)}: DeepSpeed's settings have no zero_optimization; add it") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{one_line(config, 120)}: cannot be read as DeepSpeed's settings ({one_line(error, 120)}); mend it, or "
            "deepspeed_config_file in accelerate's configuration"
        ) from None
    return found


def launched_stage() -> int:
    """Return the ZeRO stage that this process was launched with, 0 without DeepSpeed.

    Raises:
        RecipeError: As `zero_section`.
    """
    if not is_set("ACCELERATE_USE_DEEPSPEED"):
        return 0
    config = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    stage = "auto" if config == "none" else zero_section(config).get("stage", 0)
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")) if stage == "auto" else stage
