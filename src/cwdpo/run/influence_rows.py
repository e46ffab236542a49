"""The one-step influence of samples of a data file on others, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cwdpo.data.first_rows import load_first
from cwdpo.data.schema import CHOSEN
from cwdpo.devices import has_float64
from cwdpo.errors import RecipeError
from cwdpo.methods.base import METHODS
from cwdpo.models.parts import freeze_parts
from cwdpo.probes.step_influence import SMALLEST_STEP, SampleLoss, measure_influence, projected_kernel_norm
from cwdpo.recipe import Stage1Section, Stage2Section
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.open_model import open_model
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.training.callbacks.track_influence import reference_sums

__all__ = ["influence_rows"]


def influence_rows(
    model: str,
    data: Path,
    observe: Path,
    *,
    reference: str | None,
    methods: Sequence[str],
    updates: int,
    observed: int,
    etas: Sequence[float],
    projections: int,
    freeze: Sequence[str],
) -> list[dict[str, Any]]:
    """Return a row for each method, step size, update sample and observed response.

    Args:
        model: Model directory or hub id: where the steps are taken.
        data: Rows with pairs; the first are the update samples.
        observe: Rows whose first chosen responses are observed.
        reference: Reference of methods that need one; None: the model.
        methods: Methods whose loss the steps take.
        updates: Update samples.
        observed: Observed prompts.
        etas: Step sizes; with one below 1e-4 the steps are taken in float64.
        projections: Random projections for the eNTK norm; 0 leaves it out.
        freeze: Parts that take no step.

    Raises:
        UserError: The model, the data or a setting cannot be used.
    """
    if bad := [eta for eta in etas if not 0 < eta < float("inf")]:
        raise RecipeError(f"--eta {bad[0]:g}: must be a number greater than 0; it is the size of a gradient step")
    sources = load_first(data, "pair", updates)
    others = load_first(observe, "chosen", observed)
    policy, encoder = open_model(model, exact=True)
    if min(etas) < SMALLEST_STEP:
        if not has_float64(policy.device):
            raise RecipeError(
                f"--eta {min(etas):g}: needs float64, which {policy.device.type} lacks; take 1e-4 or more"
            )
        policy.double()
    policy.requires_grad_(True)
    freeze_parts(policy, freeze)
    scorer = AutoScorer()
    steps = [Batch((encoder.encode(g),)) for g in sources]
    seen = [Batch((encoder.encode(g.with_responses(g.by_role(CHOSEN)[:1])),)) for g in others]
    target = open_model(reference, exact=True)[0] if reference is not None else policy
    references = [torch.tensor(sums) for sums in reference_sums(target, scorer, steps)]
    kernel: dict[tuple[str, str], tuple[float, float]] = {}
    for u in steps if projections else []:
        for o in seen:
            norm = projected_kernel_norm(policy, scorer, o, u, projections=projections)
            kernel[u.groups[0].id, o.groups[0].id] = norm
    rows: list[dict[str, Any]] = []
    for method in methods:
        loss = SampleLoss(_section(method))
        for eta in etas:
            found = measure_influence(
                policy,
                scorer,
                steps,
                seen,
                loss,
                references=references if loss.needs_reference else None,
                eta=eta,
            )
            for item in found:
                norm = kernel.get((item.update, item.observed))
                more = {"entk_sq": norm[0], "entk_sq_se": norm[1]} if norm else {}
                rows.append({**item.to_json(), **more})
    return rows


def _section(method: str) -> Stage1Section | Stage2Section:
    section = Stage1Section if METHODS.find(method).stage == "stage1" else Stage2Section
    return section.model_validate({"objective": method})
