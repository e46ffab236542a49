"""How much arithmetic an update takes, counted from one forward pass of its own batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cwdpo.models.modes import inference
from cwdpo.models.parts import base_model, part_of
from cwdpo.models.quantized import quantized_flops, weight_count
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.scorer import Scorer

__all__ = ["Arithmetic", "count_arithmetic", "encoded_tokens"]


def encoded_tokens(batch: Batch) -> int:
    """Count the tokens that pass through the model when image and prompt are encoded once."""
    return sum(len(g.prefix_ids) + sum(len(r.ids) - 1 for r in g.responses) for g in batch.groups)


@dataclass(frozen=True)
class Arithmetic:
    """FLOPs for each encoded token, forward and backward; what gradient checkpointing computes again is not work.

    Attributes:
        text: In the language model.
        vision: In the image encoder and the projector, where features are not taken from a cache.
    """

    text: float
    vision: float

    def of(self, tokens: float, computed: float = 1.0) -> float:
        """Return the FLOPs of so many encoded tokens, a share `computed` of whose images is not in a cache."""
        return tokens * (self.text + computed * self.vision)


def count_arithmetic(model: Any, scorer: Scorer, batches: Sequence[Batch]) -> Arithmetic:
    """Count a forward pass (gradients off, nothing changed) and add what its backward pass takes.

    The backward pass of a matrix product takes as much as its forward pass for the gradient of its input, and as much
    again for that of its weight where the weight is trained. An encoder without trained weights has no backward pass.

    Args:
        model: The policy.
        scorer: How responses are scored; its cache of image features is left out.
        batches: The micro-batches of an update.
    """
    from torch.utils.flop_counter import FlopCounterMode

    vision_of: FrozenVision | None = getattr(scorer, "vision", None)
    cache = vision_of.cache if vision_of is not None else None
    if vision_of is not None:
        vision_of.cache = None
    try:
        with inference(model), FlopCounterMode(display=False, custom_mapping=quantized_flops()) as counter:
            for batch in batches:
                scorer(model, batch)
    finally:
        if vision_of is not None:
            vision_of.cache = cache
    counts = {name: float(sum(by_op.values())) for name, by_op in counter.get_flop_counts().items()}
    root, whole = type(model).__name__, counts.get("Global", 0.0)
    parts = [name for name in counts if name.startswith(f"{root}.") and part_of(name) != "language"]
    vision = sum(counts[name] for name in parts if not any(name.startswith(f"{other}.") for other in parts))
    vision += whole - counts.get(root, whole)  # features of a frozen encoder are computed before the model is called
    text = whole - vision
    tokens = float(sum(encoded_tokens(batch) for batch in batches))
    shares = _trained_shares(model)
    text *= 2 + shares["language"]
    vision *= 2 + shares["vision"] if shares["vision"] else 1
    return Arithmetic(text / tokens, vision / tokens)


def _trained_shares(model: Any) -> dict[str, float]:
    """Return the share of the weights that are trained, in the language model and in what encodes images."""
    trained, whole = {"language": 0, "vision": 0}, {"language": 0, "vision": 0}
    for name, parameter in base_model(model).named_parameters():
        part = "language" if part_of(name) == "language" else "vision"
        trained[part] += parameter.numel() if parameter.requires_grad else 0
        whole[part] += weight_count(parameter)
    return {part: trained[part] / max(whole[part], 1) for part in whole}
