"""The two stages of a run, each resumed from its last whole checkpoint."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup
from cwdpo.errors import RecipeError, StoppedError
from cwdpo.files import atomic_directory, read_json, write_json
from cwdpo.models.loading import folder_digest
from cwdpo.pipeline.data import groups_of, takes_negatives, with_every_chosen, with_negatives
from cwdpo.pipeline.dynamics import stage_dynamics
from cwdpo.pipeline.refresh import Refresher, make_picker
from cwdpo.pipeline.reporter import TrainingWatch
from cwdpo.pipeline.rundir import RunDirectory
from cwdpo.recipe import STAGE2_METHODS, Stage1Section, Stage2Section, StageSection, settings_of
from cwdpo.scoring.features import FeatureCache
from cwdpo.scoring.shared import AutoScorer
from cwdpo.training.api import CWDPOTrainer, SFTCTrainer
from cwdpo.training.callbacks import MetricsFile, StopOnSignal
from cwdpo.training.checkpoints import last_checkpoint
from cwdpo.training.config import CWDPOConfig, SFTCConfig
from cwdpo.training.throughput import Throughput

__all__ = ["train_stage1", "train_stage2"]


def train_stage1(run: RunDirectory) -> None:
    """Stage 1 (Algorithm 1, steps 2 to 6)."""
    s = run.recipe.stage1
    if _already_done(run, "stage1"):
        return
    if takes_negatives(run.recipe):
        groups = with_negatives(run, "stage1", run.recipe.negatives.stage1, run.model_path)
    else:
        groups = [g.with_responses(g.by_role(CHOSEN)[:1]) for g in groups_of(run, "stage1")]
    run.reporter.step("stage1", f"Stage 1: {s.objective} on {len(groups)} prompts")
    args = SFTCConfig(**_arguments(run, "stage1", s), **{n: getattr(s, n) for n in settings_of(Stage1Section)})

    def make(model: Any, groups: Sequence[PromptGroup], **common: Any) -> SFTCTrainer:
        return SFTCTrainer(model, args, groups, **common)

    _train(run, "stage1", s, run.model_path, groups, make)


def train_stage2(run: RunDirectory) -> None:
    """Stage 2 (Algorithm 1, steps 7 to 13)."""
    s = run.recipe.stage2
    if _already_done(run, "stage2"):
        return
    start = run.stage_model("stage1")
    groups = with_negatives(run, "stage2", run.recipe.negatives.stage2, start)
    groups = [g for g in groups if g.by_role(REJECTED)]
    if STAGE2_METHODS[s.objective].every_chosen:
        groups = with_every_chosen(groups, groups_of(run, "stage2"))
    run.reporter.step("stage2", f"Stage 2: {s.objective} on {len(groups)} prompts")
    args = CWDPOConfig(**_arguments(run, "stage2", s), **{n: getattr(s, n) for n in settings_of(Stage2Section)})
    cache, refresh = _reference_path(run), run.recipe.negatives.stage2.refresh

    def make(model: Any, groups: Sequence[PromptGroup], **common: Any) -> CWDPOTrainer:
        return CWDPOTrainer(model, args=args, train_dataset=groups, reference_cache=cache, **common)

    refresher = None if refresh is None else Refresher(run, refresh, start, groups, cache)
    _train(run, "stage2", s, start, groups, make, refresher)


def _reference_path(run: RunDirectory) -> Path:
    return run.folder / "reference" / "logps.sqlite"


def _already_done(run: RunDirectory, stage: str) -> bool:
    """Whether a stage is finished; a run that was killed just then may have left its checkpoints."""
    if run.done(stage):
        shutil.rmtree(run.folder / stage / "checkpoints", ignore_errors=True)
        return True
    return False


def _arguments(run: RunDirectory, stage: str, s: StageSection) -> dict[str, Any]:
    """Return the stage's training arguments."""
    recipe, processes = run.recipe, int(os.environ.get("WORLD_SIZE", "1"))
    micro = min(s.micro_batch_size, max(1, s.batch_size // processes))
    if s.batch_size % (micro * processes):
        raise RecipeError(
            f"{stage}.batch_size = {s.batch_size} is not a multiple of {micro} prompts × {processes} processes"
        )
    return {
        "output_dir": str(run.folder / stage / "checkpoints"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": s.batch_size // (micro * processes),
        "num_train_epochs": s.epochs,
        "max_steps": s.max_steps,
        "learning_rate": s.learning_rate,
        "lr_scheduler_type": s.schedule,
        "warmup_steps": s.warmup_ratio,
        "weight_decay": s.weight_decay,
        "max_grad_norm": s.max_grad_norm,
        "logging_steps": s.log_steps,
        "logging_first_step": True,
        "save_steps": s.save_steps,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "seed": recipe.seed,
        "bf16": recipe.model.dtype == "bfloat16",
        "use_cpu": not torch.accelerator.is_available(),
        "activation_checkpointing": s.gradient_checkpointing,
        "dataloader_num_workers": recipe.data.workers,
        "train_sampling_strategy": "group_by_length" if recipe.data.group_by_length else "random",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": recipe.report_to or "none",
        "disable_tqdm": True,
        "include_eos": s.include_eos,
        "max_length": recipe.model.max_length,
    }


def _train(
    run: RunDirectory,
    stage: str,
    s: Stage1Section | Stage2Section,
    start: str,
    groups: Sequence[PromptGroup],
    make: Callable[..., Any],
    refresher: Refresher | None = None,
) -> None:
    """Train one stage, resuming from its last whole checkpoint; in rounds where negatives are refreshed."""
    while True:
        checkpoint, broken = last_checkpoint(run.folder / stage / "checkpoints")
        if broken:
            run.reporter.note(f"{', '.join(broken)} was cut short and is passed over")
        if refresher is not None:
            refresher.begin_round(checkpoint)
        if _train_round(run, stage, s, start, groups, make, checkpoint, refresher):
            return
        gc.collect()  # the round's model goes before the next one is loaded
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _train_round(
    run: RunDirectory,
    stage: str,
    s: Stage1Section | Stage2Section,
    start: str,
    groups: Sequence[PromptGroup],
    make: Callable[..., Any],
    checkpoint: Path | None,
    refresher: Refresher | None,
) -> bool:
    """Train up to the next refresh or the end of the stage; return whether the stage is finished."""
    recipe, folder = run.recipe, run.folder / stage
    model = run.trainable(start)
    encoder = run.encoder(start, model, include_eos=s.include_eos)
    m = recipe.model
    cache = FeatureCache.of(m.vision_cache_gib, m.vision_cache_folder, m.vision_cache_folder_gib)
    scorer = AutoScorer(m.scorer, bfloat16=m.dtype == "bfloat16", cache=cache)
    dynamics = stage_dynamics(run, stage, s, encoder, scorer, folder, groups)
    probes = dynamics.probes
    stop = StopOnSignal()
    speed = Throughput(folder / "throughput.json", probes.watch if probes else None)
    moment = refresher.moment() if refresher is not None else None
    watch = TrainingWatch(f"{stage} · {getattr(s, 'objective', '')}", probes, run.reporter)
    callbacks = [MetricsFile(folder / "metrics.jsonl"), speed, *dynamics.callbacks, stop]
    callbacks += [watch] if moment is None else [moment, watch]
    scores = refresher.scores if refresher is not None else _reference_path(run)
    trainer = make(
        model,
        groups if refresher is None else refresher.groups,
        processing_class=encoder.processor,
        callbacks=callbacks,
        scorer=scorer,
        encoder=encoder,
        picker=make_picker(run, getattr(recipe.negatives, stage), scores),
    )
    trainer.quiet()
    speed.attach(trainer)
    if probes is not None:
        probes.attach(trainer)
    if checkpoint is not None:
        run.reporter.note(f"going on from {checkpoint.name}")
    if isinstance(trainer, CWDPOTrainer) and trainer.caches_reference:
        _fill_reference(run, trainer, resuming=checkpoint is not None)
    updates, seconds = _finished_updates(checkpoint), None
    try:
        if checkpoint is not None and updates:
            # Killed between the last checkpoint and the model: transformers would make an update too many.
            trainer._load_from_checkpoint(str(checkpoint))  # pyright: ignore[reportPrivateUsage]
            dynamics.finish_late(trainer, folder)
        else:
            seconds = trainer.train(str(checkpoint) if checkpoint else None).metrics.get("train_runtime")
            updates = trainer.state.global_step
    finally:
        stop.release()
        watch.close()
    if moment is not None and moment.due and stop.received is None:
        return False
    if speed.summary():
        run.reporter.note(speed.summary())
    if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise StoppedError(
            f"stopped after update {trainer.state.global_step} of {stage}; a checkpoint is saved. "
            "Run the same command again to go on"
        )
    dynamics.conclude(run, stage)
    with atomic_directory(folder / "model") as temporary:
        trainer.save_model(str(temporary))
        (temporary / "training_args.bin").unlink(missing_ok=True)
        _sort_adapter_config(temporary / "adapter_config.json")
    facts = {
        "updates": updates,
        "start": folder_digest(start),
        "model": folder_digest(folder / "model"),
    }
    run.finish(stage, {**facts, "seconds": seconds})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if stop.received is not None:
        raise StoppedError(f"stopped after {stage}, which is finished. Run the same command again to go on")
    return True


def _sort_adapter_config(path: Path) -> None:
    """Put the names of layers in order: peft keeps them as sets, whose order differs from process to process."""
    if not path.is_file():
        return
    settings: dict[str, Any] = read_json(path)
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    write_json(path, settings)


def _finished_updates(checkpoint: Path | None) -> int:
    """Return the number of updates where a checkpoint is the one after the last update, else 0."""
    state = read_json(checkpoint / "trainer_state.json") if checkpoint is not None else {"global_step": 0}
    return state["global_step"] if 0 < state.get("max_steps", 0) <= state["global_step"] else 0


def _fill_reference(run: RunDirectory, trainer: CWDPOTrainer, *, resuming: bool) -> None:
    """Score the stage's rows under the reference, and show how far that is."""
    dataset: Any = trainer.train_dataset
    total, done = len(dataset), 0

    def report(prompts: int) -> None:
        nonlocal done
        done += prompts
        run.reporter.progress("reference log-probabilities", done, total)

    trainer.fill_reference(resuming=resuming, progress=report)
