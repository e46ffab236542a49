"""What a stage measures of itself and what it does about it: probes, diagnosis, early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.errors import DataError, RecipeError, RunError
from cwdpo.files import read_jsonl, write_jsonl
from cwdpo.negatives.generating_model import GenerationJob, NegativePolicy, has_images
from cwdpo.negatives.llm_rewrites import LLMRewriter
from cwdpo.negatives.rule_rewrites import REWRITES, rewritten_by_rules
from cwdpo.probes.diagnosis.rules import StageFacts
from cwdpo.probes.figures import Figure, ProbeFigure, load_figures, signals
from cwdpo.probes.influence import SampleLoss
from cwdpo.probes.probe_responses import with_kinds
from cwdpo.probes.reading import ProbeSet, probe_digest
from cwdpo.processes import processes
from cwdpo.recipe import Recipe, Stage1Section, Stage2Section
from cwdpo.run.prepare_data import load_source, prepare_data
from cwdpo.run.probe_answers import Answers
from cwdpo.run.run_dir import RunDirectory
from cwdpo.run.run_rows import groups_of, negative_policy
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.callbacks.early_stopping import ProbeEarlyStopping
from cwdpo.training.callbacks.live_diagnosis import DiagnosisCallback
from cwdpo.training.callbacks.probe_callback import ProbeCallback
from cwdpo.training.callbacks.track_influence import InfluenceCallback

__all__ = ["StageDynamics", "make_probe_set", "probe_groups", "require_figures", "stage_dynamics"]


@dataclass
class StageDynamics:
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
                    f"{serious.sentence} {serious.remedy} With another recipe choose another --out; to go on all the "
                    "same, pass --set probes.on_diagnosis=warn"
                )
        if self.early is not None and self.early.verdict.stop is not None and self.probes is not None:
            best = self.probes.rows[self.early.verdict.best]["step"]
            run.reporter.note(f"{stage}: {self.early.signal} was best at update {best}; stopped early with that model")


def stage_dynamics(
    run: RunDirectory,
    stage: str,
    section: Stage1Section | Stage2Section,
    encoder: PromptEncoder,
    scorer: Scorer,
    folder: Path,
    train: Sequence[PromptGroup],
) -> StageDynamics:
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
    p, two = run.recipe.probes, run.recipe.stage2
    if not p.every:
        return StageDynamics()
    first = _first_model(run)
    groups = processes().lead(lambda: probe_groups(run, first), **(first.help if first is not None else {}))
    if not groups:
        return StageDynamics()
    measured = ProbeSet(groups, encoder, batch_size=p.batch_size, floor=two.floor, tau=two.tau)
    probes = ProbeCallback(
        measured,
        scorer,
        folder,
        every=p.every,
        distributions=p.distributions,
        tokens=p.tokens,
        figures=[*load_figures(p.figures), *_answers(run, encoder, groups[: p.captions])],
    )
    facts = StageFacts.of(section)
    diagnosis = DiagnosisCallback(probes, facts, action=p.on_diagnosis, say=run.reporter.note)
    early = None
    if p.early_stop is not None and stage in p.early_stop.stages:
        e = p.early_stop
        early = ProbeEarlyStopping(probes, e.signal, patience=e.patience, min_delta=e.min_delta)
    return StageDynamics(probes, diagnosis, early, _influence(run, section, encoder, scorer, folder, train, groups))


def _answers(run: RunDirectory, encoder: PromptEncoder, groups: Sequence[PromptGroup]) -> list[ProbeFigure]:
    e = run.recipe.evaluation
    return [Answers(encoder, groups, e.batch_size, e.max_new_tokens)] if groups else []


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


def _influence(
    run: RunDirectory,
    section: Stage1Section | Stage2Section,
    encoder: PromptEncoder,
    scorer: Scorer,
    folder: Path,
    train: Sequence[PromptGroup],
    groups: Sequence[PromptGroup],
) -> InfluenceCallback | None:
    """Follow the first training prompts and the chosen responses of the first probe prompts."""
    asked = run.recipe.probes.influence
    if asked is None:
        return None
    updates = [Batch((encoder.encode(g),)) for g in train[: asked.updates]]
    chosen = [g.with_responses([g.chosen]) for g in groups[: asked.observed]]
    observed = [Batch((encoder.encode(g),)) for g in chosen]
    every, eta = run.recipe.probes.every, asked.eta
    return InfluenceCallback(updates, observed, SampleLoss(section), scorer, folder, every=every, eta=eta)


def make_probe_set(run: RunDirectory) -> list[PromptGroup]:
    """Return the prompts of a recipe's probe set, in a directory where nothing needs to have been done before.

    Raises:
        UserError: What has to be mended, in one line.
    """
    with run.locked():
        run.settle()
        prepare_data(run)
        return probe_groups(run, _first_model(run))


def _first_model(run: RunDirectory) -> NegativePolicy | None:
    """Return the run's first model, where the probe set needs its answers."""
    return negative_policy(run, "stage1", run.model_path) if "own" in run.recipe.probes.kinds else None


def probe_groups(run: RunDirectory, first: NegativePolicy | None) -> list[PromptGroup]:
    """Return the prompts of the probe set, with the kinds of response that the recipe asks for.

    The kinds depend on the data and `probes.seed` alone, but for the model's own answers: these are written once a run,
    by its first model, and kept in `probes/own.jsonl`. Both stages are so measured on the same responses.
    """
    p = run.recipe.probes
    if p.path is not None:
        groups = list(load_source(run.recipe, p.path, format="auto", limit=None, image_root=None).groups)
        if p.digest is not None and (found := probe_digest(groups)) != p.digest:
            raise DataError(
                f"{p.path}: its content is {found}, but probes.digest is {p.digest}: the probe prompts have changed; "
                "bring the file back, or set probes.digest to the new content (readings of the two do not compare)"
            )
    else:
        groups = groups_of(run, "held_out")
    groups = list(islice((g for g in groups if g.by_role(CHOSEN)), p.prompts))
    if not p.kinds or not groups:
        return groups
    train = chain(groups_of(run, "stage1"), groups_of(run, "stage2"))
    written = _rewritten(run, groups)
    if first is not None:
        written["own"] = _own_answers(run, first, groups)
    return with_kinds(groups, p.kinds, train=train, written=written, seed=p.seed)


def _rewritten(run: RunDirectory, groups: list[PromptGroup]) -> dict[str, dict[str, str]]:
    """Return rewritten responses by kind and prompt."""
    p = run.recipe.probes
    kinds = [kind for kind in p.kinds if kind in REWRITES]
    if p.rewriter == "rules" or not kinds:
        return {kind: rewritten_by_rules(groups, kind, p.seed) for kind in kinds}
    rewriter = LLMRewriter(run.recipe.negatives.editor, run.folder / "probes", run.reporter.note)
    return {kind: rewriter.rewrite(groups, kind) for kind in kinds}


def _own_answers(run: RunDirectory, first: NegativePolicy, groups: list[PromptGroup]) -> dict[str, str]:
    """Return a sample of the run's first model for every prompt."""
    p, path = run.recipe.probes, run.folder / "probes" / "own.jsonl"
    rows = list(read_jsonl(path)) if path.is_file() else []
    if [(row["id"], row["seed"]) for row in rows] == [(group.id, p.seed) for group in groups]:
        return {row["id"]: row["text"] for row in rows}
    run.reporter.step("probes", f"the model's own answers to {len(groups)} probe prompts")
    how = {"max_new_tokens": run.recipe.evaluation.max_new_tokens, "temperature": 1.0}
    starts = range(0, len(groups), p.batch_size)
    jobs = [GenerationJob(groups[start : start + p.batch_size], p.seed + start, how) for start in starts]
    answers = [answer for texts in processes().map("generate", jobs, first.write, has_images) for answer in texts]
    found = {group.id: answer[0] for group, answer in zip(groups, answers, strict=True)}
    write_jsonl(path, [{"id": name, "seed": p.seed, "text": text} for name, text in found.items()])
    return found
