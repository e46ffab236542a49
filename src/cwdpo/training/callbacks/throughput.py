"""How fast a stage trains: pairs and tokens per second, data wait, peak memory, and MFU."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cwdpo.devices import device_name, peak_memory
from cwdpo.files import read_json, write_json
from cwdpo.models.modes import inference
from cwdpo.models.parts import base_model, part_of
from cwdpo.models.quantized import quantized_flops, weight_count
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.scorer import Scorer

__all__ = ["Speed", "Stopwatch", "Throughput", "count_arithmetic", "encoded_tokens", "peak_flops", "shown"]

_PEAKS = {
    "B200": 2250,
    "B100": 1750,
    "GH200": 989,
    "H200": 989,
    "H100 PCIE": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 150,
    "A10": 125,
    "RTX 6000 ADA": 364,
    "RTX A6000": 155,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "MI300X": 1307,
    "MI250": 362,
}
"""Dense bfloat16 arithmetic in TFLOP/s, as the makers print it; the first name that is part of the device's counts."""


def peak_flops(device_name: str) -> float | None:
    """Return a device's peak in FLOP/s at dense bfloat16, or None where it is not known."""
    name = device_name.upper()
    return next((tera * 1e12 for known, tera in _PEAKS.items() if known in name), None)


class Stopwatch:
    """Adds up the seconds spent in its blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


@dataclass
class Speed:
    """Work done and time taken, without the first update, which compiles kernels and checks the scorer.

    Attributes:
        updates: Updates that are counted.
        seconds: Time of these updates, waiting for data included; without probes, evaluation and checkpoints.
        waiting: Part of it in which the loop waited for data, or had the policy sample its own.
        probing: Seconds of the probes, the first reading included, beside `seconds`.
        examples: Pairs, or prompts (Stage 1, on-policy methods), over all processes.
        tokens: Tokens over all processes, each response with its prompt (as `num_tokens` and as other tools count).
        encoded: Tokens that this process passed through its model.
        flops: Arithmetic of these, forward and backward; 0 where it was not counted.
    """

    updates: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    probing: float = 0.0
    examples: float = 0.0
    tokens: float = 0.0
    encoded: float = 0.0
    flops: float = 0.0

    def minus(self, other: Speed) -> Speed:
        """Return what came after `other`."""
        mine, theirs = asdict(self), asdict(other)
        return Speed(**{name: mine[name] - theirs[name] for name in mine})

    def figures(self, unit: str, peak: float | None = None) -> dict[str, float]:
        """Return the rates under the names that are logged.

        Args:
            unit: `pairs` or `prompts`.
            peak: The device's peak in FLOP/s.
        """
        if not self.updates or self.seconds <= 0:
            return {}
        figures = {
            f"speed/{unit}_per_second": self.examples / self.seconds,
            "speed/tokens_per_second": self.tokens / self.seconds,
            "speed/data_wait_share": self.waiting / self.seconds,
            "speed/probe_share": self.probing / (self.probing + self.seconds),
            "speed/peak_memory_gib": peak_memory() / 2**30,
        }
        if self.flops and peak:
            figures["speed/mfu"] = self.flops / self.seconds / peak
        return figures


def shown(figures: Mapping[str, float]) -> str:
    """Return the figures of `Speed.figures` as a line for people; empty where there are none."""
    unit = next((u for u in ("pairs", "prompts") if f"speed/{u}_per_second" in figures), None)
    if unit is None:
        return ""
    parts = [
        f"{figures[f'speed/{unit}_per_second']:.3g} {unit}/s",
        f"{figures['speed/tokens_per_second']:,.0f} tokens/s",
        f"data wait {figures['speed/data_wait_share']:.1%}",
        f"probes {figures['speed/probe_share']:.1%}",
        f"peak {figures['speed/peak_memory_gib']:.2f} GiB",
    ]
    if "speed/mfu" in figures:
        parts.append(f"MFU {figures['speed/mfu']:.1%}")
    return "   ".join(parts)


class Throughput(TrainerCallback):
    """Logs `speed/…` beside every row of the loss and keeps `throughput.json`.

    Put it before the probes' callback, whose time would else count as training.

    Args:
        path: Where the figures of the whole stage are kept, one entry for each time it was started; None keeps none.
        probing: Stopwatch around the probes.
        count_flops: Count the arithmetic, by a forward pass of its own before the second update; default where the
            device's peak is known.
    """

    def __init__(self, path: Path | None, probing: Stopwatch | None = None, *, count_flops: bool | None = None) -> None:
        self.path, self.probing = path, probing or Stopwatch()
        self.device = device_name()
        self.peak = peak_flops(self.device)
        self._count = self.peak is not None if count_flops is None else count_flops
        self._earlier: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self.total, self._logged = Speed(), Speed()
        self._seen, self._unit = 0, "pairs"
        self._arithmetic: Arithmetic | None = None
        self._began, self._wait, self._waited, self._asked = 0.0, 0.0, 0.0, (0, 0)
        self._probed = self.probing.seconds

    def attach(self, trainer: Any) -> None:
        """Read the updates of this trainer (a `GroupTrainer`) and log through it."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reset; figures of earlier calls of the same stage stay in the file."""
        self._reset()
        self._waited = self._trainer.waiting.seconds
        known = self.path is not None and self.path.is_file() and state.global_step > 0
        self._earlier = read_json(self.path, calls=list)["calls"] if self.path is not None and known else []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Start the clock; count the FLOPs once."""
        trainer = self._trainer
        if self._count and self._arithmetic is None and self._seen == 1:
            self._arithmetic = count_arithmetic(model, trainer.scorer, trainer.update_batches)
        self._wait, self._waited = trainer.waiting.seconds - self._waited, trainer.waiting.seconds
        self._asked = self._lookups()
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the update."""
        seconds = time.perf_counter() - self._began + self._wait
        totals: Mapping[str, float] = self._trainer.update_totals
        self._seen += 1
        self._unit = "pairs" if "pairs" in totals else "prompts"
        if self._seen == 1:
            return
        batches: list[Batch] = self._trainer.update_batches
        encoded = float(sum(encoded_tokens(batch) for batch in batches))
        total = self.total
        total.updates += 1
        total.seconds += seconds
        total.waiting += self._wait
        total.examples += next((totals[name] for name in ("pairs", "chosen", "prompts") if name in totals), 0.0)
        total.tokens += totals.get("num_tokens", 0.0)
        total.encoded += encoded
        if self._arithmetic is not None:
            asked = [now - before for now, before in zip(self._lookups(), self._asked, strict=True)]
            total.flops += self._arithmetic.of(encoded, asked[1] / sum(asked) if sum(asked) else 1.0)

    def _lookups(self) -> tuple[int, int]:
        """Return the hits and the misses of the cache of image features so far."""
        cache: FeatureCache | None = getattr(self._trainer.scorer, "cache", None)
        return (cache.hits, cache.misses) if cache is not None else (0, 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Log the speed since the last row of the loss."""
        if not logs or "loss" not in logs:
            return
        self.total.probing = self.probing.seconds - self._probed
        figures = self.total.minus(self._logged).figures(self._unit, self.peak)
        if figures:
            self._logged = Speed(**asdict(self.total))
            self._trainer.log(figures)
            self._keep(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the figures of the stage."""
        self.total.probing = self.probing.seconds - self._probed
        self._keep(state)

    def summary(self) -> str:
        """Return the stage's figures as a line for people; empty where too few updates were made."""
        return shown(self.total.figures(self._unit, self.peak))

    def _keep(self, state: Any) -> None:
        if self.path is None or not state.is_world_process_zero or not self.total.updates:
            return
        call = {
            "device": self.device,
            "last_update": state.global_step,
            **asdict(self.total),
            "unit": self._unit,
            "peak_flops": self.peak,
            **self.total.figures(self._unit, self.peak),
        }
        write_json(self.path, {"calls": [*self._earlier, call]})


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
