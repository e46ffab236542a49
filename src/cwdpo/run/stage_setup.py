"""The two stages of a run: what they train on, and with which arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwdpo.data.jsonl_dataset import LazyGroups, MappedGroups
from cwdpo.data.schema import PromptGroup
from cwdpo.devices import device, has_accelerator
from cwdpo.files import remove
from cwdpo.processes import processes
from cwdpo.recipe import Recipe, StageSection
from cwdpo.run.own_answers import taught
from cwdpo.run.prepare_data import takes_negatives, takes_pairs
from cwdpo.run.refresh_rounds import Refresher, Rounds
from cwdpo.run.run_dir import RunDirectory
from cwdpo.run.run_rows import groups_of, with_every_chosen, with_negatives
from cwdpo.run.train_stage import Stage
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer

__all__ = ["require_batches", "train_stage1", "train_stage2"]


def train_stage1(run: RunDirectory) -> None:
    """Stage 1 (Algorithm 1, steps 2 to 6)."""
    s = run.recipe.stage1
    if _already_done(run, "stage1"):
        return
    if takes_negatives(run.recipe):
        groups = with_negatives(run, "stage1", run.recipe.negatives.stage1, run.model_path)
    else:
        groups = MappedGroups(groups_of(run, "stage1"), _taught, "taught")
    run.reporter.step("stage1", f"Stage 1: {s.objective} on {len(groups)} prompts")
    args = SFTCConfig(**_arguments(run, s), method=s.method)

    def make(model: Any, groups: Sequence[PromptGroup], **common: Any) -> SFTCTrainer:
        return SFTCTrainer(model, args, groups, **common)

    Stage(run, "stage1", s, run.model_path, Rounds(groups, _reference_path(run)), make).train()


def _taught(group: PromptGroup, index: int) -> PromptGroup:
    return taught(group)


def train_stage2(run: RunDirectory) -> None:
    """Stage 2 (Algorithm 1, steps 7 to 13)."""
    s = run.recipe.stage2
    if _already_done(run, "stage2"):
        return
    start = run.stage_model("stage1")
    groups = _compared(run, start) if takes_pairs(run.recipe) else groups_of(run, "stage2")
    run.reporter.step("stage2", f"Stage 2: {s.objective} on {len(groups)} prompts")
    cache, refresh = _reference_path(run), run.recipe.negatives.stage2.refresh

    def make(model: Any, groups: Sequence[PromptGroup], **common: Any) -> CWDPOTrainer:
        args = CWDPOConfig(**_arguments(run, s), method=s.method, reference=s.reference, floor=s.floor, tau=s.tau)
        return CWDPOTrainer(model, args=args, train_dataset=groups, reference_cache=cache, **common)

    rounds = Rounds(groups, cache) if refresh is None else Refresher(run, refresh, start, groups, cache)
    Stage(run, "stage2", s, start, rounds, make).train()


def _compared(run: RunDirectory, start: str) -> LazyGroups:
    """Return the prompts of Stage 2 with the responses that its objective compares."""
    groups = with_negatives(run, "stage2", run.recipe.negatives.stage2, start)
    every = run.recipe.stage2.method.needs.every_chosen
    return with_every_chosen(groups, groups_of(run, "stage2")) if every else groups


def _reference_path(run: RunDirectory) -> Path:
    return run.folder / "reference" / "logps.sqlite"


def _already_done(run: RunDirectory, stage: str) -> bool:
    """Whether a stage is finished; a run that was killed just then may have left its checkpoints."""

    def look() -> bool:
        run.require_unchanged(stage)
        if run.done(stage):
            remove(run.folder / stage / "checkpoints")
        return run.done(stage)

    return processes().lead(look)


def require_batches(recipe: Recipe, ranks: int) -> None:
    """Find out before any work whether every stage's batch can be shared by so many processes.

    Raises:
        RecipeError: It cannot.
    """
    for section in (recipe.stage1, recipe.stage2):
        if section.enabled:
            section.prompts_at_once(ranks)


def _arguments(run: RunDirectory, s: StageSection) -> dict[str, Any]:
    """Return the stage's training arguments."""
    recipe, ranks = run.recipe, processes().size
    micro = s.prompts_at_once(ranks)
    return {
        "output_dir": str(run.folder / s.place / "checkpoints"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": s.batch_size // (micro * ranks),
        "num_train_epochs": s.epochs,
        "max_steps": s.max_steps,
        "learning_rate": s.learning_rate,
        "vision_learning_rate": s.vision_learning_rate,
        "projector_learning_rate": s.projector_learning_rate,
        "lr_scheduler_type": s.schedule,
        "warmup_steps": s.warmup_ratio,
        "weight_decay": s.weight_decay,
        "max_grad_norm": s.max_grad_norm,
        "on_nonfinite": s.on_nonfinite,
        "logging_steps": s.log_steps,
        "logging_first_step": True,
        "save_steps": s.save_steps,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "seed": recipe.seed,
        "bf16": recipe.model.dtype == "bfloat16",
        "use_cpu": not has_accelerator(),
        "activation_checkpointing": s.gradient_checkpointing,
        "activation_offloading": s.activation_offloading,
        "dataloader_num_workers": recipe.data.workers,
        "train_sampling_strategy": "group_by_length" if recipe.data.group_by_length else "random",
        "dataloader_pin_memory": device().type == "cuda",
        "report_to": recipe.report_to or "none",
        "run_name": f"{run.folder.name}/{s.place}",
        "disable_tqdm": True,
        "include_eos": s.include_eos,
        "max_length": recipe.model.max_length,
    }
