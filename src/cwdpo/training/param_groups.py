"""Learning rates of a model's parts: the vision tower and the projector may have their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cwdpo.errors import ModelError
from cwdpo.models.parts import Part, part_of

__all__ = ["give_own_rates"]


def give_own_rates(optimizer: Any, model: Any, rates: Mapping[Part, float]) -> dict[Part, int]:
    """Take the weights of some parts out of an optimizer's groups and into groups of their own.

    A group's other settings (weight decay, which norms and biases do not have) go with its weights.

    Args:
        optimizer: A new optimizer: its weights have no state yet.
        model: The model, whose names tell its parts.
        rates: Learning rate of each part that has its own.

    Returns:
        For each part the index of a group that has its rate.

    Raises:
        ModelError: Nothing of a part is trained.
    """
    parts = {id(parameter): part_of(name) for name, parameter in model.named_parameters()}
    found: dict[Part, int] = {}
    for group in list(optimizer.param_groups):
        settings = {name: value for name, value in group.items() if name != "params"}
        for part, rate in rates.items():
            own = [p for p in group["params"] if parts[id(p)] == part]
            if own:
                group["params"] = [p for p in group["params"] if parts[id(p)] != part]
                found[part] = len(optimizer.param_groups)
                optimizer.add_param_group({**settings, "params": own, "lr": rate})
    for part in rates:
        if part not in found:
            raise ModelError(
                f"{part}_learning_rate: no weight of this part is trained; leave it out, or train it (model.freeze, "
                "model.lora.target_modules, model.train_fully)"
            )
    return found
