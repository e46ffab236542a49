"""DeepSpeed's ZeRO: a model that is not trained, and checkpoints that only as many processes can take up."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from cwdpo.errors import RecipeError
from cwdpo.models.loading import saved_weights
from cwdpo.processes import processes

__all__ = [
    "gathered",
    "is_partitioned",
    "let_go",
    "load_partitioned",
    "partitioned",
    "ranks_of",
    "require_whole_models",
]


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
    sharing["stage"] = 3 if sharing.get("stage") == 3 else 0
    made: Any = deepspeed.initialize(model=model, config=settings)  # pyright: ignore[reportUnknownMemberType]
    engine = made[0]
    engine.eval()
    return engine


def let_go(engine: Any) -> None:
    """Free what DeepSpeed holds for a model: some of its hooks would keep weights and optimizer for good."""
    sharing, stepping = engine.optimizer, engine.basic_optimizer
    engine.destroy()
    engine.optimizer = None
    if hasattr(sharing, "destroy"):  # DeepSpeed's own
        vars(sharing).clear()
    if stepping is not None:
        stepping.state.clear()
        stepping.param_groups.clear()
    for weight in engine.module.parameters():
        vars(weight).clear()
        weight.data = weight.new_empty(0)


def ranks_of(checkpoint: Path) -> int:
    """Return how many processes saved their part of a checkpoint with DeepSpeed; 0 where it was saved without."""
    return len(list(checkpoint.glob("global_step*/*zero_pp_rank_*optim_states.pt")))


def is_partitioned(model: Any) -> bool:
    """Whether ZeRO-3 has taken the model's weights apart."""
    return any(hasattr(weight, "ds_id") for weight in model.parameters())


def gathered(weights: Iterable[Any]) -> AbstractContextManager[None]:
    """Have weights that ZeRO-3 has taken apart whole for a while; what the first process makes of them, stays.

    All processes enter and leave together.
    """
    from deepspeed import zero  # pyright: ignore[reportMissingImports]

    found: Any = zero.GatheredParameters(list(weights), modifier_rank=0)
    return found


def load_partitioned(model: Any, folder: Path) -> None:
    """Put the weights of a saved model of the same class into one that ZeRO-3 has taken apart, one at a time.

    All processes call this together; the first one reads, and nobody's GPU holds the whole. Buffers are not trained.

    Raises:
        ModelError: They cannot be read, or some are missing.
    """
    team = processes()
    saved: dict[str, Tensor] = team.each(lambda: saved_weights(model, folder) if team.main else {})
    for name, weight in model.named_parameters():
        with gathered([weight]):
            if team.main:
                weight.copy_(saved[name])
