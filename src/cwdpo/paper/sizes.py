"""At what size the tables are remade: drawn pictures on a CPU, more of them on a GPU, or the paper's own setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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


def _stage(rate: float, batch: int, micro: int, **more: Any) -> dict[str, Any]:
    schedule = "constant_with_warmup"
    return {"learning_rate": rate, "batch_size": batch, "micro_batch_size": micro, "schedule": schedule, **more}


def _scenes(batch: int, prompts_at_once: int) -> dict[str, Any]:
    return {
        "model": {"path": "scenes"},
        "stage1": _stage(3e-4, batch, batch, epochs=1, save_steps=100),
        "stage2": _stage(1e-4, batch, batch, epochs=4, save_steps=100),
        "negatives": {"stage1": {"max_new_tokens": 24}, "stage2": {"max_new_tokens": 24, "batch_size": 64}},
        "evaluation": {"batch_size": prompts_at_once, "max_new_tokens": 24},
    }


_LORA = {"path": "Qwen/Qwen2.5-VL-7B-Instruct", "dtype": "bfloat16", "freeze": ["vision"], "lora": {"r": 16}}

SCALES: Mapping[str, Scale] = {
    "tiny": Scale(
        name="tiny",
        title="drawn pictures and the shipped base of 0.7 M parameters, on a CPU",
        train=2400,
        evaluated=500,
        rate=1e-4,
        rates=(1e-5, 3e-5, 1e-4, 3e-4),
        recipe=_scenes(32, 250),
    ),
    "small": Scale(
        name="small",
        title="sixteen times as many drawn pictures, for one GPU",
        train=38_400,
        evaluated=4000,
        rate=1e-4,
        rates=(1e-5, 3e-5, 1e-4, 3e-4),
        recipe=_scenes(64, 1000),
    ),
    "full": Scale(
        name="full",
        title="Qwen2.5-VL on COCO captions (Karpathy's split), as in the paper",
        train=0,
        evaluated=5000,
        rate=1e-5,
        rates=(3e-6, 1e-5, 3e-5),
        recipe={
            "model": _LORA,
            "data": {"format": "karpathy", "captions": "random", "workers": 4, "check_images": False},
            "stage1": _stage(1e-4, 64, 8, epochs=1, save_steps=200),
            "stage2": _stage(1e-5, 64, 8, epochs=1, save_steps=200),
            "negatives": {"stage1": {"dataset": 0, "perturb": 1}},
            "evaluation": {"batch_size": 64, "max_new_tokens": 48},
        },
        given={"dataset": 0, "perturb": 1},
        correction="none",
        launched=True,
    ),
}
