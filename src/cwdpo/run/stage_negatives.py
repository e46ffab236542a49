"""A stage's negatives, made and looked at without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from cwdpo.data.schema import PromptGroup
from cwdpo.errors import RecipeError
from cwdpo.files import read_json, read_jsonl, remove, write_text
from cwdpo.negatives.filters import CandidateFilter
from cwdpo.negatives.generating_model import ResponseScorer
from cwdpo.negatives.source_statistics import NegativeStatistics, collect_statistics
from cwdpo.recipe import SourceMix
from cwdpo.run.prepare_data import prepare_data, takes_negatives, takes_pairs
from cwdpo.run.run_dir import RunDirectory
from cwdpo.run.run_rows import negative_policy, with_negatives
from cwdpo.safe_yaml import parse_yaml

__all__ = ["StageNegatives", "negatives_of"]


@dataclass(frozen=True)
class StageNegatives:
    """What `negatives_of` made.

    Attributes:
        groups: Prompts with their negatives.
        survey: Their statistics.
        dropped: Rows of `dropped.jsonl`.
        model: The model that wrote on-policy ones and scored all.
    """

    groups: Sequence[PromptGroup]
    survey: NegativeStatistics
    dropped: list[dict[str, Any]]
    model: str


def negatives_of(
    run: RunDirectory, stage: Literal["stage1", "stage2"], *, scored: int = 500, samples: int = 12
) -> StageNegatives:
    """Make the negatives of a stage in a run directory and look at them.

    In a directory where no training has begun, a recipe with other negatives replaces them; texts that models have
    written are kept, and reused where they fit.

    Args:
        run: The directory and its recipe.
        stage: Which stage's.
        scored: Most prompts whose responses are scored; 0 scores none.
        samples: Prompts to look at.

    Raises:
        UserError: What has to be fixed, in one line.
    """
    recipe = run.recipe
    if stage == "stage1" and not takes_negatives(recipe):
        raise RecipeError("stage1 takes no negatives: it is off, plain sft, or smooths labels; use --stage stage2")
    if stage == "stage2" and not recipe.stage2.enabled:
        raise RecipeError("stage2.enabled is false: it takes no negatives; use --stage stage1")
    if stage == "stage2" and not takes_pairs(recipe):
        raise RecipeError(f"stage2.objective: {recipe.stage2.objective} takes no negatives; use --stage stage1")
    with run.locked():
        run.encoder(run.model_path)  # an unusable model is reported before anything is written
        _forget_other_negatives(run)
        run.settle()
        prepare_data(run)
        model = run.model_path
        if stage == "stage2" and recipe.stage1.enabled:
            if run.done("stage1"):
                model = run.stage_model("stage1")
            else:
                run.reporter.note("Stage 1 is not trained here: the base model writes and scores the negatives")
        mix: SourceMix = getattr(recipe.negatives, stage)
        groups = with_negatives(run, stage, mix, model)
        folder = run.folder / "negatives" / stage
        survey = collect_statistics(
            groups,
            read_json(folder / "tallies.json", sources=dict)["sources"],
            judge=CandidateFilter(mix.filter),
            without=read_json(folder / "counts.json").get("none", 0),
            scorer=ResponseScorer(negative_policy(run, stage, model), folder, mix.batch_size) if scored else None,
            scored=scored,
            floor=recipe.stage2.floor,
            tau=recipe.stage2.tau,
            samples=samples,
            seed=recipe.negatives.seed,
            progress=lambda done, total: run.reporter.progress("scoring responses", done, total),
        )
        return StageNegatives(groups, survey, list(read_jsonl(folder / "dropped.jsonl")), model)


def _forget_other_negatives(run: RunDirectory) -> None:
    """Take over a recipe with other negatives, as long as nothing was trained on the old ones."""
    path = run.folder / "recipe.yaml"
    if not path.is_file() or any((run.folder / s).exists() for s in ("stage1", "stage2", "reference", "evaluation")):
        return
    try:
        before = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    now = run.recipe.model_dump(mode="json")["negatives"]
    if isinstance(before, dict) and before.get("negatives") != now:
        for stage in ("stage1", "stage2"):
            remove(run.folder / "negatives" / stage / "groups.jsonl")
        write_text(path, yaml.safe_dump({**before, "negatives": now}, sort_keys=False, allow_unicode=True))
