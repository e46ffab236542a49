"""What a stage measures of itself and what it does about it: probes, diagnosis, early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cwdpo.data.schema import PromptGroup
from cwdpo.errors import RecipeError, RunError
from cwdpo.files import read_jsonl
from cwdpo.probes.diagnosis.rules import StageFacts
from cwdpo.probes.figures import Figure, load_figures, signals
from cwdpo.probes.reading import ProbeSet
from cwdpo.probes.step_influence import SampleLoss
from cwdpo.recipe import Recipe, Stage1Section, Stage2Section
from cwdpo.run.probe_answers import Answers
from cwdpo.run.probe_prompts import probe_groups
from cwdpo.run.run_dir import RunDirectory
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.callbacks.early_stopping import ProbeEarlyStopping
from cwdpo.training.callbacks.live_diagnosis import DiagnosisCallback
from cwdpo.training.callbacks.probe_callback import ProbeCallback
from cwdpo.training.callbacks.track_influence import InfluenceCallback

__all__ = ["StageCallbacks", "require_figures", "stage_callbacks"]


@dataclass
class StageCallbacks:
    """The callbacks of a stage that measure and act; all None where probes are off.

    Attributes:
        probes: Readings.
        diagnosis: Rules over them.
        early: Early stopping, where the recipe asks for it.
        influence: One-step influence, where the recipe asks for it.
    """

    probes: ProbeCallback | None = None
    diagnosis: DiagnosisCallback | None = None
    early: ProbeEarlyStopping | None = None
    influence: InfluenceCallback | None = None

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """In the order in which the trainer must call them."""
        return [c for c in (self.probes, self.influence, self.diagnosis, self.early) if c is not None]

    def finish_late(self, trainer: Any, folder: Path) -> None:
        """Choose the weights of a run that was killed after its last update."""
        path = folder / "probes.jsonl"
        if self.early is not None and self.probes is not None and path.is_file():
            self.probes.rows = list(read_jsonl(path))
            self.early.finish(trainer.model, trainer.args)

    def conclude(self, run: RunDirectory, stage: str) -> None:
        """Tell what was found, at the end of a stage.

        Raises:
            RunError: The recipe asks to stop at a serious finding, and there was one.
        """
        if self.diagnosis is not None:
            for finding in self.diagnosis.findings:
                run.reporter.note(f"{stage}: {finding.rule}, {finding.severity}: {finding.remedy}")
            if (serious := self.diagnosis.stopped_by) is not None:
                raise RunError(
                    f"stopped after update {serious.step} of {stage} by probes.on_diagnosis: {serious.rule}: "
                    f"{serious.sentence} {serious.remedy} With another recipe choose another --out; to resume all "
                    "the same, pass --set probes.on_diagnosis=warn"
                )
        if self.early is not None and self.early.verdict.stop is not None and self.probes is not None:
            best = self.probes.rows[self.early.verdict.best]["step"]
            run.reporter.note(f"{stage}: {self.early.signal} was best at update {best}; stopped early with that model")


def stage_callbacks(
    run: RunDirectory,
    stage: str,
    section: Stage1Section | Stage2Section,
    encoder: PromptEncoder,
    scorer: Scorer,
    folder: Path,
    train: Sequence[PromptGroup],
) -> StageCallbacks:
    """Return the callbacks that the recipe asks for in a stage.

    Args:
        run: The run.
        stage: `stage1` or `stage2`.
        section: Its settings.
        encoder: Its prompt encoder.
        scorer: Its scorer.
        folder: Its folder.
        train: Its training prompts.
    """
    p, two, e = run.recipe.probes, run.recipe.stage2, run.recipe.evaluation
    groups = probe_groups(run) if p.every else []
    if not groups:
        return StageCallbacks()
    figures = load_figures(p.figures)
    if p.captions:
        figures.append(Answers(encoder, groups[: p.captions], e.batch_size, e.max_new_tokens))
    probe_set = ProbeSet(groups, encoder, batch_size=p.batch_size, floor=two.floor, tau=two.tau)
    how: dict[str, Any] = {"every": p.every, "distributions": p.distributions, "tokens": p.tokens}
    probes = ProbeCallback(probe_set, scorer, folder, figures=figures, **how)
    diagnosis = DiagnosisCallback(probes, StageFacts.of(section), action=p.on_diagnosis, say=run.reporter.note)
    early, influence = None, None
    if (stop := p.early_stop) is not None and stage in stop.stages:
        early = ProbeEarlyStopping(probes, stop.signal, patience=stop.patience, min_delta=stop.min_delta)
    if p.influence is not None:
        chosen = [g.with_responses([g.chosen]) for g in groups[: p.influence.observed]]
        updates, observed = (
            [Batch((encoder.encode(g),)) for g in part] for part in (train[: p.influence.updates], chosen)
        )
        loss, eta = SampleLoss(section), p.influence.eta
        influence = InfluenceCallback(updates, observed, loss, scorer, folder, every=p.every, eta=eta)
    return StageCallbacks(probes, diagnosis, early, influence)


def require_figures(recipe: Recipe) -> list[Figure]:
    """Return the figures of your own that a recipe asks for.

    Raises:
        RecipeError: One cannot be used, or early stopping follows one that is not read.
    """
    own = [figure for source in load_figures(recipe.probes.figures) for figure in source.figures()]
    early = recipe.probes.early_stop
    if early is not None and early.signal not in (known := signals(own)):
        raise RecipeError(f"probes.early_stop.signal = {early.signal}: must be one of {', '.join(known)}")
    return own
