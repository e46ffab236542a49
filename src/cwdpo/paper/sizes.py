"""At what size the tables are remade: drawn on a CPU, more on a GPU, or the paper's own setting; see `scales.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cwdpo.paper.arms import data_of

__all__ = ["SCALES", "Scale"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size.

    Attributes:
        name: Its key.
        title: What it is.
        train: Training pictures to draw; 0 where the data are given.
        evaluated: Held-out prompts that are captioned and scored.
        rate: Learning rate of Stage 2 where it is not chosen.
        rates: Those that are tried for a method whose rate is chosen.
        recipe: Sections of the recipe that all runs share.
        given: Negatives that stand for the paper's edited ones.
        correction: Who corrects the base's own answers for OPA-DPO; none: it is run as its loss alone.
        launched: Each run is a call of `accelerate launch`, one after another, not a process on one thread.
    """

    name: str
    title: str
    train: int
    evaluated: int
    rate: float
    rates: tuple[float, ...]
    recipe: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=lambda: {"dataset": 1})
    correction: str = "exact"
    launched: bool = False


def _scale(name: str, rates: Sequence[float], **rest: Any) -> Scale:
    return Scale(name=name, rates=tuple(rates), **rest)


SCALES: Mapping[str, Scale] = {name: _scale(name, **values) for name, values in data_of("scales.yaml").items()}
