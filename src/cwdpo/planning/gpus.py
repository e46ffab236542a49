"""Graphics processors: how much they hold, how fast they are, and how several share a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from cwdpo.errors import RecipeError, one_line
from cwdpo.safe_yaml import parse_yaml
from cwdpo.training.callbacks.throughput import peak_flops

__all__ = ["GIB", "GPUS", "Gpu", "Gpus", "Layout", "parse_gpus", "read_layout"]

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One processor.

    Attributes:
        name: What it is called.
        gib: Memory, in GiB.
        flops: Dense bfloat16 arithmetic, in FLOP/s.
        bandwidth: Of its memory, in bytes/s.
    """

    name: str
    gib: float
    flops: float
    bandwidth: float


_MEMORY: Mapping[str, tuple[float, float]] = {
    "A100-40": (40, 1.555),
    "A100-80": (80, 2.039),
    "A10": (22.5, 0.6),
    "A40": (45, 0.696),
    "RTX3090": (24, 0.936),
    "RTX4090": (24, 1.008),
    "RTX5090": (32, 1.792),
    "L4": (22.5, 0.3),
    "L40S": (45, 0.864),
    "H100": (80, 3.35),
    "H100-PCIE": (80, 2.0),
    "H200": (140, 4.8),
    "B200": (180, 8.0),
    "MI300X": (192, 5.3),
}
"""GiB and TB/s as the makers print them; less what error correction takes where the driver shows less."""


GPUS: Mapping[str, Gpu] = {
    name: Gpu(name, gib, peak_flops(re.sub(r"^RTX", "RTX ", name.replace("-", " "))) or 0.0, terabytes * 1e12)
    for name, (gib, terabytes) in _MEMORY.items()
}
"""Known by name. Arithmetic comes from the one table that a run's MFU is taken against."""

_NUMBER = r"(\d{1,9}(?:\.\d+)?)"
_OWN = re.compile(rf"{_NUMBER}GI?B@{_NUMBER}TFLOPS(?:@{_NUMBER}TB/?S)?")


@dataclass(frozen=True)
class Gpus:
    """Several processors of a kind."""

    count: int
    gpu: Gpu


def parse_gpus(text: str) -> Gpus:
    """Read `8xH100`, `H100`, or figures of one's own: `8x80GB@400TFLOPs` or `8x80GB@400TFLOPs@2TB/s`.

    Raises:
        RecipeError: The kind is not known.
    """
    found = re.fullmatch(r"(?:(\d{1,6})X)?(.*)", text.strip().upper().replace(" ", ""))
    assert found is not None
    count, kind = int(found[1] or 1), found[2]
    if count < 1:
        raise RecipeError(f"--gpus {one_line(text, 60)}: give at least one GPU, for instance 8xH100")
    if own := _OWN.fullmatch(kind):
        gib, tera, terabytes = (float(n) if n else 0.0 for n in own.groups())
        if gib > 0 and tera > 0:
            # What is not given: as many bytes for each FLOP as an H100 moves.
            bandwidth = terabytes * 1e12 or tera * 1e12 * GPUS["H100"].bandwidth / GPUS["H100"].flops
            return Gpus(count, Gpu(kind, gib, tera * 1e12, bandwidth))
    names = {"A100": "A100-80", "4090": "RTX4090", "3090": "RTX3090", "5090": "RTX5090"}
    kind = names.get(kind, kind)
    kind = next((name for name in GPUS if kind in (name, f"{name}GB", name.replace("-", ""))), kind)
    if kind not in GPUS:
        close = difflib.get_close_matches(kind, list(GPUS), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise RecipeError(
            f"--gpus {one_line(text, 60)}: unknown GPU; {hint}known: {', '.join(GPUS)}; or give figures, for instance "
            "8x80GB@400TFLOPs@2TB/s"
        )
    return Gpus(count, GPUS[kind])


@dataclass(frozen=True)
class Layout:
    """How processes share a model.

    Attributes:
        kind: `ddp`: everyone holds everything; `fsdp2`: weights, gradients and the optimizer's state are sharded.
        offload: Shards and the optimizer's state lie in main memory.
        source: Where it was read.
    """

    kind: Literal["ddp", "fsdp2"] = "ddp"
    offload: bool = False
    source: str = ""


def read_layout(path: Path) -> Layout:
    """Read accelerate's configuration.

    Raises:
        RecipeError: It is none, or shares a model in another way.
    """
    try:
        found: Any = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        kind = str(found["distributed_type"]).upper()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise RecipeError(
            f"{path}: no configuration of accelerate ({one_line(error, 160)}); see recipes/accelerate"
        ) from None
    if kind in ("MULTI_GPU", "NO"):
        return Layout("ddp", source=str(path))
    if kind == "FSDP":
        settings: Any = found.get("fsdp_config")
        if not isinstance(settings, dict) or settings.get("fsdp_version") != 2:
            raise RecipeError(f"{path}: fsdp_version must be 2; FSDP 1 is not used here")
        return Layout("fsdp2", bool(settings.get("fsdp_offload_params")), str(path))
    if kind == "DEEPSPEED":
        raise RecipeError(f"{path}: DeepSpeed is not supported; use FSDP2 (recipes/accelerate/fsdp2.yaml)")
    raise RecipeError(f"{path}: distributed_type = {kind}: plan knows MULTI_GPU and FSDP")
