"""The parts of a vision-language model (vision, projector, language), told by the names of its modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch

from cwdpo.errors import ModelError

__all__ = ["Part", "base_model", "freeze_parts", "give_own_rates", "part_of", "pattern_of", "roots_of"]

Part = Literal["vision", "projector", "language"]

_PROJECTOR_NAMES = ("multi_modal_projector", "mm_projector", "connector", "merger", "deepstack_merger_list", "mlp1")
_VISION_NAMES = ("visual", "vision_tower", "vision_model", "vision_encoder", "image_encoder")
_PROJECTOR = re.compile(rf"(^|\.)({'|'.join(_PROJECTOR_NAMES)})(\.|$)")
_VISION = re.compile(rf"(^|\.)({'|'.join(_VISION_NAMES)})(\.|$)")


def part_of(name: str) -> Part:
    """Return which part of a vision-language model a parameter or module of this name belongs to."""
    if _PROJECTOR.search(name):
        return "projector"
    return "vision" if _VISION.search(name) else "language"


def base_model(model: Any) -> Any:
    """Return the transformers model inside DDP, accelerate or PEFT wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def freeze_parts(model: Any, parts: Iterable[str]) -> None:
    """Stop training the named parts of a model without adapters.

    Raises:
        ModelError: Nothing is left to train, or a named part does not exist in this model.
    """
    parts = set(parts)
    found = {part_of(name) for name, _ in model.named_parameters()}
    if absent := sorted(parts - found):
        raise ModelError(f"model.freeze names {absent[0]}, but {type(model).__name__} has no such part")
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("model.freeze leaves nothing to train; take a part out of the list")


def pattern_of(parts: Iterable[str]) -> str:
    """Return a regular expression for the modules of these parts, by the same names as `part_of`."""
    within = r"(?:.*\.)?(?:{})(?:\..*)?"
    projector = within.format("|".join(_PROJECTOR_NAMES))
    vision = rf"(?!{projector}$)" + within.format("|".join(_VISION_NAMES))
    patterns = {"projector": projector, "vision": vision, "language": rf"(?!{projector}$)(?!{vision}$).*"}
    return "|".join(f"(?:{patterns[part]})" for part in sorted(parts))


def roots_of(model: Any, parts: Iterable[str]) -> Iterator[str]:
    """Yield the topmost modules of these parts; for a list of modules its members, since PEFT wraps no lists."""
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if not any(part_of(name) == part and part_of(parent) != part and part != "language" for part in parts):
            continue
        yield from ([f"{name}.{i}" for i in range(len(module))] if isinstance(module, torch.nn.ModuleList) else [name])


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
