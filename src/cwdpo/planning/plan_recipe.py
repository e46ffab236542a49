"""A recipe's plan: its steps, whether they fit, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cwdpo.errors import ModelError, RecipeError
from cwdpo.planning.data_shape import Said, read_rows
from cwdpo.planning.gpus import Layout, parse_gpus, read_layout
from cwdpo.planning.memory import FRAGMENTS, GIB, RESERVE
from cwdpo.planning.meta_models import model_of
from cwdpo.planning.planner import Assumptions, Planner, Step
from cwdpo.planning.suggestions import Remedy, remedies, smallest_number
from cwdpo.recipe import Recipe

__all__ = ["RESERVES", "RecipePlan", "plan_recipe"]

RESERVES = {"reserve_gib": RESERVE / GIB, "fragments": FRAGMENTS}
"""What is counted beside a step's own memory: GiB for CUDA and libraries, and a share for fragments."""


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
        planner = self.planner
        size, rows = planner.size(), planner.rows
        return {
            "model": {"path": planner.recipe.model.path, "type": planner.config.model_type, **asdict(size)},
            "gpus": {"count": planner.gpus.count, **asdict(planner.gpus.gpu)},
            "layout": asdict(planner.layout),
            "rows": {
                "source": rows.source,
                "counts": rows.counts,
                "typical": asdict(rows.typical),
                "largest": asdict(rows.largest),
            },
            "assumptions": {**asdict(planner.assume), **RESERVES},
            "steps": [
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
            ],
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
    _require_whole_weights(recipe, layout)
    planner = Planner(recipe, found, layout, read_rows(recipe, config, said), assume)
    note("running the steps dry")
    steps = planner.steps()
    if not steps:
        raise ModelError("the recipe has no step that needs a GPU; enable a stage")
    plan = RecipePlan(planner, steps)
    if plan.fits:
        return plan
    changes, after = remedies(planner, note)
    return RecipePlan(planner, steps, changes, after, None if after is not None else smallest_number(planner))


def _require_whole_weights(recipe: Recipe, layout: Layout) -> None:
    """Refuse what training refuses too."""
    asked = {"model.quantization": recipe.model.quantization is not None}
    for name in ("stage1", "stage2"):
        stage = getattr(recipe, name)
        asked[f"{name}.activation_offloading"] = stage.enabled and stage.activation_offloading
    for key, value in asked.items():
        if value and layout.kind != "ddp":
            raise RecipeError(
                f"{layout.source}: {key} needs whole weights, which FSDP takes apart; leave it out, or use DDP"
            )
