"""What to change where a run does not fit: each change with what it saves, and the first that are enough together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cwdpo.errors import ModelError, RecipeError
from cwdpo.planning.gpus import Layout
from cwdpo.planning.planner import Planner, Step
from cwdpo.recipe import LoraSection, Recipe

__all__ = ["Change", "Remedy", "remedies", "smallest_number", "worst"]


@dataclass(frozen=True)
class Change:
    """Something that can be changed.

    Attributes:
        text: As one writes it: `stage1.micro_batch_size=1`, or what to launch with.
        cost: What it costs.
        apply: Makes a planner of the changed run.
    """

    text: str
    cost: str
    apply: Callable[[Planner], Planner]


@dataclass(frozen=True)
class Remedy:
    """A change and what it is good for.

    Attributes:
        text: The change.
        cost: What it costs.
        saves: GiB on the fullest GPU at the fullest step, made alone.
        needed: It is one of those that are enough together.
    """

    text: str
    cost: str
    saves: float
    needed: bool = False


def worst(planner: Planner) -> Step:
    """Return the step that needs most."""
    return max(planner.steps(), key=lambda step: step.gib)


def remedies(planner: Planner, note: Callable[[str], None] = lambda _: None) -> tuple[list[Remedy], float | None]:
    """Return changes in the order of what they cost, those marked that are enough together.

    Returns:
        The changes, and the GiB that the fullest step needs with the marked ones; None where nothing is enough.
    """
    planner = planner.changed(timed=False)
    room, before = planner.gpus.gpu.gib, worst(planner).gib
    found: list[Remedy] = []
    made: list[Change] = []
    now, after = planner, before
    for change in _changes(planner):
        note(f"what {change.text} saves")
        try:
            alone = before - worst(change.apply(planner)).gib
        except ModelError:  # this model has no such thing
            continue
        if after > room:
            tried = change.apply(now)
            if (left := worst(tried).gib) < after - 0.01:
                now, after = tried, left
                made.append(change)
        if alone > 0.01 or change in made:
            found.append(Remedy(change.text, change.cost, alone))
    if after > room:
        return found, None
    kept = _needed(planner, made, room)
    best = planner
    for change in kept:
        best = change.apply(best)
    names = {change.text for change in kept}
    return [replace(r, needed=r.text in names) for r in found], worst(best).gib


def _needed(planner: Planner, made: list[Change], room: float) -> list[Change]:
    """Leave out what is not needed any more, the costliest first."""
    kept = list(made)
    for change in reversed(made[:-1]):
        others = [c for c in kept if c is not change]
        tried = planner
        for other in others:
            tried = other.apply(tried)
        if worst(tried).gib <= room:
            kept = others
    return kept


def _set(planner: Planner, **sections: dict[str, Any]) -> Planner:
    """Return a planner of the recipe with some keys changed."""
    values = planner.recipe.model_dump()
    for path, changes in sections.items():
        node = values
        for name in path.split("__"):
            node = node[name]
        node |= changes
    return planner.changed(recipe=Recipe.model_validate(values))


def _changes(planner: Planner) -> Iterator[Change]:
    """Yield what can be changed, cheapest first."""
    r, ranks = planner.recipe, planner.gpus.count
    stages = [name for name in ("stage1", "stage2") if getattr(r, name).enabled]
    for section, key, least in (("probes", "batch_size", 1), ("evaluation", "batch_size", 1)):
        if (have := getattr(r, section).batch_size) > least and (section != "probes" or r.probes.every):
            yield _setting(
                f"{section}.{key}={max(least, have // 4)}",
                "that step takes longer",
                section,
                {key: max(least, have // 4)},
            )
    for stage in stages:
        mix = getattr(r.negatives, stage)
        if mix.batch_size > 1 and set(mix.sources()) & {"beam", "sample"}:
            less = {"batch_size": max(1, mix.batch_size // 4)}
            yield _setting(
                f"negatives.{stage}.batch_size={less['batch_size']}",
                "that step takes longer",
                f"negatives__{stage}",
                less,
            )
    for micro in (m for m in (4, 2, 1) if any(planner.prompts_at_once(s) > m for s in stages)):
        if any(getattr(r, s).batch_size % (micro * ranks) for s in stages):
            continue
        text = " ".join(f"{s}.micro_batch_size={micro}" for s in stages)
        many = {s: {"micro_batch_size": micro} for s in stages}
        yield Change(text, "smaller matrices, somewhat slower; the same result", lambda p, many=many: _set(p, **many))
    if stages and not all(getattr(r, s).gradient_checkpointing for s in stages):
        many = {s: {"gradient_checkpointing": True} for s in stages}
        text = " ".join(f"{s}.gradient_checkpointing=true" for s in stages)
        yield Change(text, "about a third more time", lambda p, many=many: _set(p, **many))
    if r.stage2.enabled and r.stage2.reference == "live" and r.stage2.objective not in ("grpo", "ppo"):
        yield _setting(
            "stage2.reference=cached", "nothing: a pass over the data before", "stage2", {"reference": "cached"}
        )
    if not {"vision", "projector"} <= set(r.model.freeze) and "vision" in r.model.freeze:
        parts: list[Any] = sorted({*r.model.freeze, "projector"})
        yield _setting(
            "model.freeze=[vision,projector]",
            "what joins tower and language model is not trained; features are computed once",
            "model",
            {"freeze": parts, "train_fully": [p for p in r.model.train_fully if p not in parts]},
        )
    if ranks > 1 and planner.layout.kind == "ddp" and r.model.quantization is None:
        yield Change(
            "--accelerate recipes/accelerate/fsdp2.yaml",
            "weights travel between the GPUs in every step",
            lambda p: _set(p, **_ON_THE_GPU).changed(layout=Layout("fsdp2", source="recipes/accelerate/fsdp2.yaml")),
        )
    if "vision" not in r.model.freeze and "language" not in r.model.freeze:
        parts = sorted({*r.model.freeze, "vision", "projector"})
        yield _setting(
            "model.freeze=[projector,vision]",
            "the tower is not trained",
            "model",
            {"freeze": parts, "train_fully": []},
        )
    if r.model.lora is None:
        lora = {"lora": LoraSection().model_dump(), "freeze": [p for p in r.model.freeze if p != "language"]}
        yield _setting("model.lora={r: 16}", "adapters in place of all weights", "model", lora)
    if stages and not all(getattr(r, s).activation_offloading for s in stages):
        yield Change(
            " ".join(f"{s}.activation_offloading=true" for s in stages),
            "activations travel to main memory and back in every pass",
            lambda p: p if p.layout.kind != "ddp" else _set(p, **{s: {"activation_offloading": True} for s in stages}),
        )
    yield Change(
        "model.quantization=nf4" + (" without --accelerate" if planner.layout.kind != "ddp" else ""),
        "frozen weights rounded to 4 bits, products somewhat slower; needs bitsandbytes",
        _in_four_bits,
    )
    if r.evaluation.prompts:
        yield _setting("evaluation.prompts=0", "nothing is captioned at the end", "evaluation", {"prompts": 0})
    if r.model.dtype == "float32":
        yield _setting("model.dtype=bfloat16", "numbers of 8 bits", "model", {"dtype": "bfloat16"})


def _in_four_bits(planner: Planner) -> Planner:
    if planner.recipe.model.lora is None or planner.recipe.model.quantization is not None:
        return planner
    return _set(planner.changed(layout=Layout()), model={"quantization": "nf4"})


def _setting(text: str, cost: str, section: str, changes: dict[str, Any]) -> Change:
    return Change(text, cost, lambda p: _set(p, **{section: changes}))


_ON_THE_GPU: Mapping[str, Any] = {stage: {"activation_offloading": False} for stage in ("stage1", "stage2")}


def smallest_number(planner: Planner) -> int | None:
    """Return the least number of GPUs, in powers of two up to 64, on which the run fits with FSDP2; None if none.

    Without `model.quantization` and `activation_offloading`, which do not go with it.
    """
    planner = _set(planner, model={"quantization": None}, **_ON_THE_GPU)
    for count in (2, 4, 8, 16, 32, 64):
        if count <= planner.gpus.count:
            continue
        other = planner.changed(gpus=replace(planner.gpus, count=count), layout=Layout("fsdp2"), timed=False)
        with contextlib.suppress(RecipeError):  # a batch that so many cannot share
            if worst(other).gib <= planner.gpus.gpu.gib:
                return count
    return None
