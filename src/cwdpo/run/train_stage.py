"""One stage while it is trained: from its last whole checkpoint, in rounds, to the model that it ends with."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwdpo.devices import empty_cache
from cwdpo.errors import StoppedError
from cwdpo.files import append_jsonl, atomic_directory, read_json, remove, write_json
from cwdpo.models.identity import folder_digest
from cwdpo.processes import processes
from cwdpo.recipe import Stage1Section, Stage2Section
from cwdpo.run.progress import TrainingWatch
from cwdpo.run.refresh_rounds import Rounds, make_picker
from cwdpo.run.run_dir import RunDirectory
from cwdpo.run.stage_callbacks import StageCallbacks, stage_callbacks
from cwdpo.run.trackers import tracked
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.training.callbacks.loop_callbacks import MetricsFile, RefreshMoment, RowsKnown, StopOnSignal, trim_rows
from cwdpo.training.callbacks.throughput import Throughput
from cwdpo.training.checkpoints import last_checkpoint
from cwdpo.training.trainer import GroupTrainer
from cwdpo.training.trainers import CWDPOTrainer

__all__ = ["Stage"]


@dataclass
class _Round:
    """A trainer and the callbacks that are asked for something after it has trained."""

    trainer: GroupTrainer
    dynamics: StageCallbacks
    stop: StopOnSignal
    speed: Throughput
    moment: RefreshMoment | None
    watch: TrainingWatch

    @property
    def ends_for_refresh(self) -> bool:
        """Whether it stopped because negatives are due for a refresh."""
        return self.moment is not None and self.moment.due and self.stop.received is None

    def train(self, checkpoint: Path | None) -> float | None:
        """Make the updates that are left; return the seconds, None where no update was."""
        seconds: float | None = None
        try:
            if checkpoint is not None and finished_updates(checkpoint):
                # Killed between the last checkpoint and the model: transformers would make an update too many.
                self.trainer.load_finished(checkpoint)
                self.dynamics.finish_late(self.trainer, checkpoint.parents[1])
            else:
                seconds = self.trainer.train(str(checkpoint) if checkpoint else None).metrics.get("train_runtime")
        finally:
            self.stop.release()
            self.watch.close()
        self.stop.agree()
        return seconds


@dataclass(frozen=True)
class Stage:
    """A stage that is to be trained.

    Attributes:
        run: The run.
        name: `stage1` or `stage2`.
        section: Its settings.
        start: The model that it starts from.
        rounds: What it trains on, from refresh to refresh.
        make: A model, prompt groups and what all trainers take, to the stage's trainer.
    """

    run: RunDirectory
    name: str
    section: Stage1Section | Stage2Section
    start: str
    rounds: Rounds
    make: Callable[..., GroupTrainer]

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.run.folder / self.name

    def train(self) -> None:
        """Train, resuming from the last whole checkpoint; in rounds where negatives are refreshed.

        Raises:
            StoppedError: A signal came; a checkpoint is saved.
        """
        with tracked(self.run.recipe.report_to, self.folder):
            while not self._train_round():
                gc.collect()  # the round's model goes before the next one is loaded
                empty_cache()

    def _train_round(self) -> bool:
        """Train up to the next refresh or the end of the stage; return whether the stage is finished."""
        checkpoint, broken = processes().lead(lambda: last_checkpoint(self.folder / "checkpoints"))
        if broken:
            self.run.reporter.note(f"{', '.join(broken)} is damaged or was cut short, and is passed over")
        if checkpoint is not None:
            processes().lead(lambda: RowsKnown(self.folder).require_unchanged(checkpoint))
        self.rounds.begin(checkpoint)
        now = self._round()
        trainer = now.trainer
        if checkpoint is not None:
            self.run.reporter.note(f"resuming from {checkpoint.name}")
        if isinstance(trainer, CWDPOTrainer) and trainer.caches_reference:
            self._fill_reference(trainer, resuming=checkpoint is not None)
        seconds = now.train(checkpoint)
        state = trainer.state
        if now.ends_for_refresh:
            return False
        if now.speed.summary():
            self.run.reporter.note(now.speed.summary())
        if now.stop.received is not None and state.global_step < state.max_steps:
            place = f"update {state.global_step} of {self.name}; a checkpoint is saved"
            raise _stopped(now.stop.received, place)
        now.dynamics.conclude(self.run, self.name)
        self._finish(trainer, seconds, state.global_step or finished_updates(checkpoint))
        if now.stop.received is not None:
            raise _stopped(now.stop.received, f"{self.name}, which is finished")
        return True

    def _round(self) -> _Round:
        """Load the model and put a trainer and its callbacks together."""
        run, s, m = self.run, self.section, self.run.recipe.model
        model = processes().each(lambda: run.trainable(self.start))
        encoder = run.encoder(self.start, model, include_eos=s.include_eos)
        cache = FeatureCache.of(m.vision_cache_gib, m.vision_cache_folder, m.vision_cache_folder_gib)
        scorer = AutoScorer.of(m, cache)
        dynamics = stage_callbacks(run, self.name, s, encoder, scorer, self.folder, self.rounds.first_groups)
        probes = dynamics.probes
        stop, moment = StopOnSignal(), self.rounds.moment()
        speed = Throughput(self.folder / "throughput.json", probes.watch if probes else None)
        watch = TrainingWatch(f"{self.name} · {s.objective}", probes, run.reporter)
        rows = [MetricsFile(self.folder / "metrics.jsonl"), RowsKnown(self.folder)]
        callbacks = [*rows, speed, *dynamics.callbacks, stop]
        trainer = self.make(
            model,
            self.rounds.groups,
            processing_class=encoder.processor,
            callbacks=[*callbacks, *([moment] if moment is not None else []), watch],
            scorer=scorer,
            encoder=encoder,
            picker=make_picker(run, getattr(run.recipe.negatives, self.name), self.rounds.scores),
        )
        trainer.quiet()
        trainer.guard.told = self._note_skipped
        speed.attach(trainer)
        if probes is not None:
            probes.attach(trainer)
        return _Round(trainer, dynamics, stop, speed, moment, watch)

    def _note_skipped(self, update: int, text: str) -> None:
        """Say that an update was skipped, and keep it, once even across kills."""
        self.run.reporter.note(text)
        if processes().main:
            path = self.folder / "skipped.jsonl"
            trim_rows(path, update - 1)
            append_jsonl(path, {"step": update, "what": text})

    def _fill_reference(self, trainer: CWDPOTrainer, *, resuming: bool) -> None:
        """Score the stage's rows under the reference, and show how far that is."""
        dataset: Any = trainer.train_dataset
        total, done = len(dataset), 0

        def report(prompts: int) -> None:
            nonlocal done
            done += prompts
            self.run.reporter.progress("reference log-probabilities", done, total)

        trainer.fill_reference(resuming=resuming, progress=report)

    def _finish(self, trainer: GroupTrainer, seconds: float | None, updates: int) -> None:
        """Keep the model, mark the stage finished, and let its checkpoints go."""
        team = processes()
        with ExitStack() as stack:
            temporary = team.lead(lambda: stack.enter_context(atomic_directory(self.folder / "model")))
            trainer.save_whole(temporary)
            if team.main:
                _tidy(temporary)
        team.lead(lambda: self._mark_finished(seconds, updates))

    def _mark_finished(self, seconds: float | None, updates: int) -> None:
        facts = {"start": folder_digest(self.start), "model": folder_digest(self.folder / "model")}
        self.run.finish(self.name, {"updates": updates, **facts, "seconds": seconds})
        remove(self.folder / "checkpoints")


def _stopped(number: int, place: str) -> StoppedError:
    """Return the error that says, in one of the processes, that a signal stopped all of them."""
    error = StoppedError.by(number, f"stopped after {place}. Run the same command again to resume")
    error.told = None if processes().size == 1 else not processes().main
    return error


def finished_updates(checkpoint: Path | None) -> int:
    """Return the number of updates where a checkpoint is the one after the last update, else 0."""
    state = (
        read_json(checkpoint / "trainer_state.json", global_step=int) if checkpoint is not None else {"global_step": 0}
    )
    return state["global_step"] if 0 < state.get("max_steps", 0) <= state["global_step"] else 0


def _tidy(folder: Path) -> None:
    """Leave out what is of the call, and peft's empty card; put the names of layers, its sets, in order."""
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    settings: dict[str, Any] = read_json(path)
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    write_json(path, settings)
