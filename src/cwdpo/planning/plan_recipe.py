"""A recipe's plan: its steps, whether they fit, and what to change: what each change saves, and which are enough."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cwdpo.errors import ModelError, RecipeError
from cwdpo.planning.data_shape import Said, read_rows
from cwdpo.planning.gpus import GIB, Layout, parse_gpus, read_layout
from cwdpo.planning.meta_models import model_of
from cwdpo.planning.planner import FRAGMENTS, RESERVE, Assumptions, Planner, Step
from cwdpo.recipe import Recipe
from cwdpo.recipe.load_recipe import load_recipe

__all__ = ["RecipePlan", "Remedy", "plan_recipe"]


@dataclass(frozen=True)
class Remedy:
    """A change and what it is good for.

    Attributes:
        text: The change, as one writes it.
        cost: What it costs.
        saves: GiB on the fullest GPU at the fullest step, made alone.
        needed: It is one of those that are enough together.
    """

    text: str
    cost: str
    saves: float
    needed: bool = False


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe takes on given GPUs.

    Attributes:
        planner: Recipe, GPUs, layout and data.
        steps: The steps, in order.
        remedies: What saves memory, cheapest first; empty where everything fits.
        after: GiB that the fullest step takes with all remedies that are needed; None where they do not suffice.
        number: GPUs that hold the recipe as it is, where remedies do not suffice.
    """

    planner: Planner
    steps: Sequence[Step]
    remedies: Sequence[Remedy] = ()
    after: float | None = None
    number: int | None = None

    @property
    def fits(self) -> bool:
        """Whether every step fits one GPU."""
        return max(step.gib for step in self.steps) <= self.planner.gpus.gpu.gib

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        planner, rows = self.planner, self.planner.rows
        shapes = {"typical": asdict(rows.typical), "largest": asdict(rows.largest)}
        steps = [
            {
                "name": step.name,
                "what": step.what,
                "gib": {kind: size / GIB for kind, size in step.memory.items()},
                "gib_with_reserve": step.gib,
                "fits": step.gib <= planner.gpus.gpu.gib,
                "flops": step.flops,
                "seconds": step.seconds,
            }
            for step in self.steps
        ]
        return {
            "model": {"path": planner.recipe.model.path, "type": planner.config.model_type, **asdict(planner.size())},
            "gpus": {"count": planner.gpus.count, **asdict(planner.gpus.gpu)},
            "layout": asdict(planner.layout),
            "rows": {"source": rows.source, "counts": rows.counts, **shapes},
            "assumptions": {**asdict(planner.assume), "reserve_gib": RESERVE, "fragments": FRAGMENTS},
            "steps": steps,
            "fits": self.fits,
            "seconds": sum(step.seconds for step in self.steps),
            "disk": planner.disk(),
            "remedies": [asdict(remedy) for remedy in self.remedies],
            "gib_after_remedies": self.after,
            "gpus_enough": self.number,
        }


def plan_recipe(
    recipe: Recipe,
    gpus: str,
    accelerate: Path | None,
    *,
    said: Said,
    assume: Assumptions,
    note: Callable[[str], None],
) -> RecipePlan:
    """Run a recipe's steps dry.

    Args:
        recipe: The recipe.
        gpus: Which GPUs, as `parse_gpus` reads them.
        accelerate: Configuration of accelerate; None: DDP.
        said: What is known of the data beside the data.
        assume: What is not known before a run.
        note: Told what is done.

    Raises:
        UserError: The recipe, the GPUs, the model or the data cannot be used.
    """
    found = parse_gpus(gpus)
    layout = read_layout(accelerate) if accelerate is not None else Layout()
    recipe, config = model_of(recipe)
    planner = Planner(recipe, found, layout, read_rows(recipe, config, said), assume)
    note("running the steps dry")
    plan = RecipePlan(planner, planner.steps())
    if not plan.steps:
        raise ModelError("the recipe has no step that needs a GPU; enable a stage")
    if plan.fits:
        return plan
    remedies, after = _remedies(planner, note)
    number = _smallest_number(planner) if after is None else None
    return replace(plan, remedies=remedies, after=after, number=number)


@dataclass(frozen=True)
class _Change:
    """Something that can be changed: keys of the recipe, how GPUs share the model, and what it costs."""

    keys: Sequence[str]
    cost: str
    layout: Layout | None = None
    launch: str = ""

    @property
    def text(self) -> str:
        return " ".join([*self.keys, *([self.launch] if self.layout is not None else [])])


def _gib(planner: Planner, changes: Sequence[_Change]) -> float:
    """Return what the fullest step needs after some changes; infinity where they cannot be made together."""
    keys = [key for change in changes for key in change.keys]
    layouts = [planner.layout, *(change.layout for change in changes if change.layout is not None)]
    try:
        recipe = load_recipe(overrides=keys, base=planner.recipe.model_dump()) if keys else planner.recipe
        return max(step.gib for step in planner.changed(recipe=recipe, layout=layouts[-1]).steps())
    except (ModelError, RecipeError):  # this model has no such thing, or so many GPUs cannot share the batch
        return math.inf


def _remedies(planner: Planner, note: Callable[[str], None]) -> tuple[list[Remedy], float | None]:
    """Return changes in the order of what they cost, and the GiB after those that are enough together, if any are."""
    room, before = planner.gpus.gpu.gib, _gib(planner, [])
    saved: dict[str, tuple[_Change, float]] = {}
    made: list[_Change] = []
    after = before
    for change in _changes(planner):
        note(f"what {change.text} saves")
        alone = max(0.0, before - _gib(planner, [change]))
        if after > room and (left := _gib(planner, [*made, change])) < after - 0.01:
            made, after = [*made, change], left
        if alone > 0.01 or change in made:
            saved[change.text] = (change, alone)
    enough = after <= room
    for change in reversed(made[:-1]):  # what is not needed any more, the costliest first
        others = [one for one in made if one is not change]
        if enough and _gib(planner, others) <= room:
            made = others
    found = [Remedy(text, c.cost, alone, enough and c in made) for text, (c, alone) in saved.items()]
    return found, _gib(planner, made) if enough else None


def _changes(planner: Planner) -> Iterator[_Change]:
    """Yield what can be changed, cheapest first."""
    r, ranks, sharded = planner.recipe, planner.gpus.count, planner.layout.kind != "ddp"
    stages = {name: stage for name in ("stage1", "stage2") if (stage := getattr(r, name)).enabled}

    def in_stages(setting: str) -> list[str]:
        return [f"{name}.{setting}" for name in stages]

    def freeze(*parts: str) -> list[str]:
        frozen = sorted({*r.model.freeze, *parts})
        fully = [part for part in r.model.train_fully if part not in frozen]
        changed = [f"model.train_fully={json.dumps(fully)}"] if fully != r.model.train_fully else []
        return [f"model.freeze=[{','.join(frozen)}]", *changed]

    batches = {"probes": r.probes.batch_size if r.probes.every else 1, "evaluation": r.evaluation.batch_size}
    mixes = {name: getattr(r.negatives, name) for name in stages}
    batches |= {f"negatives.{n}": mix.batch_size for n, mix in mixes.items() if mix.on_policy}
    for section, size in batches.items():
        if size > 1:
            yield _Change([f"{section}.batch_size={max(1, size // 4)}"], "that step takes longer")
    for micro in (4, 2, 1):
        smaller = any(planner.prompts_at_once(name) > micro for name in stages)
        if smaller and not any(stage.batch_size % (micro * ranks) for stage in stages.values()):
            cost = "smaller matrices, somewhat slower; the same result"
            yield _Change(in_stages(f"micro_batch_size={micro}"), cost)
    if not all(stage.gradient_checkpointing for stage in stages.values()):
        yield _Change(in_stages("gradient_checkpointing=true"), "about a third more time")
    if r.stage2.enabled and r.stage2.reference == "live" and r.stage2.objective not in ("grpo", "ppo"):
        yield _Change(["stage2.reference=cached"], "nothing: a pass over the data before")
    if "vision" in r.model.freeze and "projector" not in r.model.freeze:
        cost = "what joins tower and language model is not trained; features are computed once"
        yield _Change(freeze("projector"), cost)
    if ranks > 1 and not sharded and r.model.quantization is None:
        path = "recipes/accelerate/fsdp2.yaml"
        keys = [f"{name}.activation_offloading=false" for name, stage in stages.items() if stage.activation_offloading]
        cost = "weights travel between the GPUs in every step"
        yield _Change(keys, cost, Layout("fsdp2", source=path), f"--accelerate {path}")
    if "vision" not in r.model.freeze and "language" not in r.model.freeze:
        yield _Change(freeze("vision", "projector"), "the tower is not trained")
    if r.model.lora is None:
        rest = [part for part in r.model.freeze if part != "language"]
        keys = [f"model.freeze={json.dumps(rest)}"] if rest != r.model.freeze else []
        yield _Change(["model.lora={r: 16}", *keys], "adapters in place of all weights")
    if not all(stage.activation_offloading for stage in stages.values()):
        cost = "activations travel to main memory and back in every pass"
        yield _Change(in_stages("activation_offloading=true"), cost)
    if r.model.quantization is None:
        cost = "frozen weights rounded to 4 bits, products somewhat slower; needs bitsandbytes"
        yield _Change(["model.quantization=nf4"], cost, Layout() if sharded else None, "without --accelerate")
    if r.evaluation.prompts:
        yield _Change(["evaluation.prompts=0"], "nothing is captioned at the end")
    if r.model.dtype == "float32":
        yield _Change(["model.dtype=bfloat16"], "numbers of 8 bits")


def _smallest_number(planner: Planner) -> int | None:
    """Return the least number of GPUs, in powers of two up to 64, on which the run fits with FSDP2; None if none.

    Without `model.quantization` and `activation_offloading`, which do not go with it.
    """
    plain = _Change(["model.quantization=null", *(f"stage{n}.activation_offloading=false" for n in (1, 2))], "")
    for count in (2, 4, 8, 16, 32, 64):
        if count > planner.gpus.count:
            other = planner.changed(gpus=replace(planner.gpus, count=count))
            if _gib(other, [replace(plain, layout=Layout("fsdp2"))]) <= planner.gpus.gpu.gib:
                return count
    return None
