"""Two checkpoints on the same rows: how far apart their distributions are, and what each finds likely."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cwdpo.data.schema import PromptGroup
from cwdpo.devices import empty_cache
from cwdpo.evaluation.intervals import mean_row
from cwdpo.probes.reading import ProbeSet
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.scorer import Scorer

__all__ = ["compare_models"]

_KEPT = ("ece", "accuracy", "entropy", "top1", "ranking", "reliability")


def compare_models(
    load: Callable[[str], tuple[Any, PromptEncoder]],
    names: tuple[str, str],
    groups: Sequence[PromptGroup],
    scorer: Scorer,
    *,
    batch_size: int = 8,
    samples: int = 4,
    floor: float = -3.0,
    tau: float = 1.0,
) -> dict[str, Any]:
    """Compare two models by teacher forcing on the responses of some prompts.

    Args:
        load: Gives a model and its prompt encoder by name.
        names: The two models, A and B; differences are B − A.
        groups: Prompts; each has a chosen response, and any others.
        scorer: How responses are scored.
        batch_size: Prompts per forward pass.
        samples: Of so many prompts, the likeliest tokens are returned.
        floor: ℓ_floor of the cooling weights.
        tau: Their τ.

    Returns:
        `a` and `b` (each with calibration, entropy and ℓ̄ by kind), `tv` and `js` over the gold tokens (JS in bits),
        `delta`: for each kind the mean difference of ℓ̄ in nats per token with its paired 95 % interval, `samples`: the
        likeliest tokens of both, and `probes`, the hash of prompts and responses.
    """
    model_a, encoder = load(names[0])
    probes = ProbeSet(groups, encoder, batch_size=batch_size, floor=floor, tau=tau)
    a, _ = probes.read(model_a, scorer, per_prompt=True, tokens=samples)
    model_b, _ = load(names[1])
    b, _ = probes.read(model_b, scorer, before=model_a, per_prompt=True, tokens=samples)
    found: dict[str, Any] = {"models": {"a": names[0], "b": names[1]}, "prompts": len(probes), "probes": probes.digest}
    found |= {"tv": b["tv"], "js": b["js"]}
    found |= {name: _side(reading) for name, reading in (("a", a), ("b", b))}
    found["delta"] = {kind: _delta(kind, a["prompts"], b["prompts"]) for kind in a["kinds"]}
    found["samples"] = [
        {"id": one["id"], "gold": one["gold"], "a": one["places"], "b": other["places"]}
        for one, other in zip(a.get("top_tokens", ()), b.get("top_tokens", ()), strict=True)
    ]
    empty_cache()
    return found


def _side(reading: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {
        kind: {name: value for name, value in values.items() if name != "cooling_histogram"}
        for kind, values in reading["kinds"].items()
    }
    return {**{name: reading[name] for name in _KEPT if name in reading}, "kinds": kinds}


def _delta(kind: str, one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how much likelier a kind is under B, paired by prompt (the first response of the kind)."""
    pairs = [(a[kind], b[kind]) for a, b in zip(one, other, strict=True) if kind in a]
    return mean_row([b - a for a, b in pairs]) | {"prompts": len(pairs)}
