"""Figures of your own: of captions, and of the model while it trains."""

# --8<-- [start:captions]
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cwdpo.evaluation.caption_metrics import Score


def recall(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Share of the references' words that the caption has, × 100, mean over pictures with its interval."""
    each: list[float] = []
    for caption, gold in zip(captions, references, strict=True):
        words = {word for text in gold for word in text.split()}
        each.append(100 * len(words & set(caption.split())) / len(words))
    return {"recall": Score.of_mean(each)}


# --8<-- [end:captions]


# --8<-- [start:probe]
class Distance:
    """How far the trained weights have moved since training began: ‖θ − θ₀‖, for the rows of `probes.jsonl`."""

    def __init__(self, model: Any) -> None:
        self._start = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    def __call__(self, model: Any) -> Mapping[str, float]:
        """Return the figures by name. It must leave model and random state as they are."""
        now = [p.detach() for p in model.parameters() if p.requires_grad]
        squares = [(a - b).square().sum() for a, b in zip(now, self._start, strict=True)]
        return {"distance": float(torch.stack(squares).sum().sqrt())}


# --8<-- [end:probe]


# --8<-- [start:use]
def watch(trainer: Any, probe_set: Any, folder: Any, every: int = 50) -> None:
    """Read it with the probes."""
    from cwdpo.training.callbacks.loop_callbacks import ProbeCallback

    also = Distance(trainer.model)
    trainer.add_callback(ProbeCallback(probe_set, trainer.scorer, folder, every=every, also=also))


# --8<-- [end:use]
