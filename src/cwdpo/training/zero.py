"""DeepSpeed's ZeRO: a model that is not trained, and checkpoints that only as many processes can take up."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from cwdpo.errors import RecipeError

__all__ = ["partitioned", "ranks_of", "require_whole_models"]


def require_whole_models(plugin: Any) -> None:
    """Refuse a configuration of DeepSpeed with which no whole model can be saved.

    Raises:
        RecipeError: Weights are shared (stage 3) and are not put together for saving.
    """
    sharing = plugin.deepspeed_config.get("zero_optimization", {})
    if sharing.get("stage") == 3 and sharing.get("stage3_gather_16bit_weights_on_model_save") is not True:
        raise RecipeError(
            "ZeRO-3 saves no whole model; set zero3_save_16bit_model: true in accelerate's configuration (or "
            "stage3_gather_16bit_weights_on_model_save in DeepSpeed's)"
        )


def partitioned(model: Any, accelerator: Any) -> Any:
    """Return a model that is only read, its weights shared among the processes (stage 3) or whole (below).

    Args:
        model: The model; with stage 3 its weights are taken apart in place.
        accelerator: Whose DeepSpeed configuration is followed, without what only training has.
    """
    import deepspeed  # pyright: ignore[reportMissingImports]

    settings: dict[str, Any] = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    sharing = settings["zero_optimization"]
    for key in ("optimizer", "scheduler"):
        settings.pop(key, None)
    sharing.pop("offload_optimizer", None)
    sharing["stage"] = 3 if sharing["stage"] == 3 else 0
    made: Any = deepspeed.initialize(model=model, config=settings)  # pyright: ignore[reportUnknownMemberType]
    engine = made[0]
    engine.eval()
    return engine


def ranks_of(checkpoint: Path) -> int:
    """Return how many processes saved their part of a checkpoint with DeepSpeed; 0 where it was saved without."""
    return len(list(checkpoint.glob("global_step*/*zero_pp_rank_*optim_states.pt")))
