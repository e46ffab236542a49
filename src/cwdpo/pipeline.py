"""Algorithm 1 as resumable steps over a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from transformers import TrainerCallback

from cwdpo._version import __version__
from cwdpo.data import DataSource, ImageLimits, load_groups, split_stages, with_image_files, write_groups
from cwdpo.data import write_rejected as write_rejected_rows
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup
from cwdpo.dynamics.probes import ProbeSet
from cwdpo.errors import RecipeError, RunError
from cwdpo.evaluation.captioning import caption_groups
from cwdpo.evaluation.metrics import cider
from cwdpo.files import atomic_directory, file_digest, read_json, write_json, write_jsonl, write_text
from cwdpo.models.loading import add_lora, folder_digest, freeze_parts, load_model, sequence_limit
from cwdpo.models.processors import load_processor
from cwdpo.negatives.sources import NegativePolicy, build_negatives
from cwdpo.recipe import Recipe, SourceMix, StageSection, recipe_differences
from cwdpo.scenes import base_path
from cwdpo.scenes.grammar import is_correct
from cwdpo.scenes.rows import write_rows
from cwdpo.scenes.world import Scene
from cwdpo.scoring.encode import PromptEncoder, require_template
from cwdpo.scoring.separate import SeparateScorer
from cwdpo.training.api import CWDPOTrainer, SFTCTrainer
from cwdpo.training.callbacks import MetricsFile, ProbeCallback, StopOnSignal
from cwdpo.training.checkpoints import last_checkpoint
from cwdpo.training.config import CWDPOConfig, SFTCConfig

__all__ = ["Interrupted", "Reporter", "Run", "Silent", "load_source"]

STEPS = ("data", "stage1", "stage2", "evaluation")

_FIRST_STEP = {"name": None, "report_to": None, "evaluation": "evaluation", "stage2": "stage2"}
"""First step that a section of the recipe bears on; the sections not named here bear on all of them."""


class Interrupted(RunError):
    """The user (or a scheduler) asked the run to stop. What was done is kept."""


class Reporter(Protocol):
    """Who is told how a run goes on."""

    def step(self, name: str, text: str) -> None:
        """Announce a step."""
        ...

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        ...

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far a step is."""
        ...

    def training(self, title: str, probes: ProbeCallback | None) -> list[TrainerCallback]:
        """Return callbacks that show a stage while it trains."""
        ...


class Silent:
    """Tells nobody."""

    def step(self, name: str, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Say nothing."""

    def training(self, title: str, probes: ProbeCallback | None) -> list[TrainerCallback]:
        """Show nothing."""
        return []


def load_source(recipe: Recipe, path: str, **changes: Any) -> Any:
    """Read one data file as the recipe says."""
    d = recipe.data
    settings: dict[str, Any] = {
        "format": "auto" if d.format == "scenes" else d.format,
        "image_root": d.image_root,
        "prompt": d.prompt,
        "captions": d.captions,
        "seed": d.split_seed,
        "split": d.split,
        "on_bad_row": d.on_bad_row,
        "max_bad_share": d.max_bad_share,
        "limits": ImageLimits(max_pixels=d.image_pixel_limit),
        "check_images": d.check_images,
        "limit": d.limit,
    }
    return load_groups(DataSource(path=path, **{**settings, **changes}))


@dataclass
class Run:
    """A recipe in a directory. Each step is done once; a killed one goes on where it was."""

    folder: Path
    recipe: Recipe
    reporter: Reporter = field(default_factory=Silent)

    # -- the whole -------------------------------------------------------------------------------------------------

    def execute(self) -> dict[str, Any]:
        """Run every step that is not done yet and return the evaluation's summary.

        Raises:
            UserError: Something the user has to mend, in one line.
            Interrupted: A signal came; the run goes on from here when it is started again.
        """
        with self._locked():
            self._settle_recipe()
            for warning in self.recipe.warnings():
                self.reporter.note(warning)
            self._write_manifest()
            self._data()
            if self.recipe.stage1.enabled:
                self._stage1()
            if self.recipe.stage2.enabled:
                self._stage2()
            return self._evaluation() if self.recipe.evaluation.prompts else {}

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / ".lock").open("w")
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written to: {error.strerror}; choose another --out") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"{self.folder}: another run is at work in it; wait for it or choose another --out"
                ) from None
            yield

    def _settle_recipe(self) -> None:
        """Keep the recipe beside its results; refuse one that changes what is already done."""
        path = self.folder / "recipe.yaml"
        now = self.recipe.model_dump(mode="json")
        if path.is_file():
            for difference in recipe_differences(yaml.safe_load(path.read_text(encoding="utf-8")), now):
                first = _FIRST_STEP.get(difference.split(".")[0].split(" ")[0], "data")
                if first is None:
                    continue
                started = [s for s in STEPS[STEPS.index(first) :] if (self.folder / s).exists()]
                if started:
                    raise RunError(
                        f"{self.folder}: the step {started[0]} was made with another recipe: {difference}; "
                        "choose another --out, or delete that folder and those after it"
                    )
        write_text(path, self.recipe.to_yaml())

    def _write_manifest(self) -> None:
        packages = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
        manifest: dict[str, Any] = {
            "cwdpo": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
            "machine": {
                "platform": platform.platform(),
                "cpus": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            },
            "seed": self.recipe.seed,
            "model": {"path": self.model_path, "digest": folder_digest(self.model_path)},
        }
        path = self.folder / "manifest.json"
        known = read_json(path) if path.is_file() else manifest
        if known["model"]["digest"] != manifest["model"]["digest"]:
            raise RunError(f"{self.folder}: the model at {self.model_path} has changed since this run began")
        write_json(path, {**known, **manifest})

    @property
    def model_path(self) -> str:
        """The model that the run starts from."""
        return str(base_path()) if self.recipe.model.path == "scenes" else self.recipe.model.path

    def stage_model(self, stage: str) -> str:
        """The model that a stage ends with, or the one before it where the stage is left out."""
        if stage == "stage2" and self.recipe.stage2.enabled:
            return str(self.folder / "stage2" / "model")
        return str(self.folder / "stage1" / "model") if self.recipe.stage1.enabled else self.model_path

    def _done(self, step: str) -> bool:
        return (self.folder / step / "done.json").is_file()

    def _finish(self, step: str, facts: Mapping[str, Any]) -> None:
        write_json(self.folder / step / "done.json", facts)

    # -- data ------------------------------------------------------------------------------------------------------

    def _data(self) -> None:
        """Read, check and share out the data, once."""
        folder, d = self.folder / "data", self.recipe.data
        if self._done("data"):
            self._check_unchanged()
            return
        self.reporter.step("data", f"reading {d.path}")
        held_out: tuple[PromptGroup, ...] = ()
        bad: list[Any] = []
        if d.path == "scenes":
            train, held_out = self._draw_scenes(folder)
        else:
            loaded = load_source(self.recipe, d.path)
            train, bad = loaded.groups, list(loaded.bad_rows)
            if d.held_out_path is not None:
                other = load_source(self.recipe, d.held_out_path)
                held_out, bad = other.groups, [*bad, *other.bad_rows]
        share = 0 if held_out else (int(d.held_out) if d.held_out >= 1 else d.held_out)
        split = split_stages(train, stage1_share=d.stage1_share, held_out=share, seed=d.split_seed)
        parts = {"stage1": split.stage1, "stage2": split.stage2, "held_out": held_out or split.held_out}
        for name, groups in parts.items():
            write_groups(folder / f"{name}.jsonl", [with_image_files(g, folder / "images") for g in groups])
        if bad:
            write_rejected_rows(self.folder / "rejected_rows.jsonl", bad)
            self.reporter.note(f"{len(bad)} rows set aside in {self.folder / 'rejected_rows.jsonl'}")
        sources = [p for p in (d.path, d.held_out_path) if p is not None and Path(p).is_file()]
        counts = {name: len(groups) for name, groups in parts.items()}
        facts = {"counts": counts, "bad_rows": len(bad), "sources": {p: file_digest(Path(p)) for p in sources}}
        self._finish("data", facts)
        self.reporter.note(", ".join(f"{n} {name}" for name, n in counts.items()))

    def _check_unchanged(self) -> None:
        for path, digest in read_json(self.folder / "data" / "done.json")["sources"].items():
            if Path(path).is_file() and file_digest(Path(path)) != digest:
                raise RunError(f"{path}: the data file has changed since this run began; choose another --out")

    def _draw_scenes(self, folder: Path) -> tuple[tuple[PromptGroup, ...], tuple[PromptGroup, ...]]:
        d = self.recipe.data
        held_out = int(d.held_out) if d.held_out >= 1 else max(1, round(d.held_out * d.size))
        write_rows(folder / "scenes", d.size, d.split_seed, "train")
        write_rows(folder / "scenes", held_out, d.split_seed, "test")
        files = [folder / "scenes" / name for name in ("train.jsonl", "test.jsonl")]
        train, test = (load_source(self.recipe, str(f), format="cwdpo", check_images=False).groups for f in files)
        return train, test

    def groups(self, part: str) -> tuple[PromptGroup, ...]:
        """Return the rows of `stage1`, `stage2` or `held_out`."""
        path = self.folder / "data" / f"{part}.jsonl"
        if path.stat().st_size == 0:
            return ()
        return load_groups(DataSource(path=path, format="cwdpo", check_images=False, require="response")).groups

    def _negatives(self, stage: str, mix: SourceMix, model_path: str) -> list[PromptGroup]:
        """Give a stage's prompts their negatives, written by the model that the stage starts from."""
        folder = self.folder / "negatives" / stage
        path = folder / "groups.jsonl"
        if not path.is_file():
            self.reporter.step("negatives", f"negatives of {stage}")
            policy = NegativePolicy(
                load=lambda: self._load(model_path),
                encoder=self.encoder(model_path),
                digest=folder_digest(model_path),
            )
            found, counts = build_negatives(
                self.groups(stage),
                mix,
                seed=self.recipe.negatives.seed,
                folder=folder,
                policy=policy,
                progress=lambda done, total: self.reporter.progress("generating negatives", done, total),
            )
            write_json(folder / "counts.json", counts)
            write_groups(path, found)
            self.reporter.note(", ".join(f"{n} from {source}" for source, n in counts.items()))
        return list(load_groups(DataSource(path=path, format="cwdpo", check_images=False)).groups)

    # -- models ----------------------------------------------------------------------------------------------------

    def encoder(self, path: str, **changes: Any) -> PromptEncoder:
        """Return the prompt encoder of a model directory."""
        m = self.recipe.model
        processor = load_processor(
            path, min_pixels=m.min_pixels, max_pixels=m.max_pixels, trust_remote_code=m.trust_remote_code
        )
        require_template(processor, path)
        limits = ImageLimits(max_pixels=self.recipe.data.image_pixel_limit)
        return PromptEncoder(processor, max_length=m.max_length, limits=limits, **changes)

    def _load(self, path: str) -> Any:
        model = load_model(self.recipe.model, path, trainable=False)
        return model.to("cuda") if torch.cuda.is_available() else model

    def _trainable(self, path: str) -> Any:
        m = self.recipe.model
        model = load_model(m, path)
        if m.lora is None:
            freeze_parts(model, m.freeze)
        elif not hasattr(model, "peft_config"):
            torch.manual_seed(self.recipe.seed)
            model = add_lora(model, m, m.lora)
        return model

    # -- stages ----------------------------------------------------------------------------------------------------

    def _stage1(self) -> None:
        s = self.recipe.stage1
        if self._done("stage1"):
            return
        if s.objective == "sft_c" and s.regularizer != "label_smoothing":
            groups = self._negatives("stage1", self.recipe.negatives.stage1, self.model_path)
        else:
            groups = [g.with_responses(g.by_role(CHOSEN)[:1]) for g in self.groups("stage1")]
        self.reporter.step("stage1", f"Stage 1: {s.objective} on {len(groups)} prompts")
        names = ("objective", "regularizer", "weight", "nll_floor", "hinge_scope", "nll_reduction", "epsilon")
        args = SFTCConfig(**self._arguments("stage1", s), **{n: getattr(s, n) for n in names})
        self._train("stage1", s, self.model_path, lambda model, **common: SFTCTrainer(model, args, groups, **common))

    def _stage2(self) -> None:
        s = self.recipe.stage2
        if self._done("stage2"):
            return
        start = self.stage_model("stage1")
        groups = self._negatives("stage2", self.recipe.negatives.stage2, start)
        groups = [g for g in groups if g.by_role(REJECTED)]
        self.reporter.step("stage2", f"Stage 2: {s.objective} on {len(groups)} prompts")
        names = ("objective", "beta", "floor", "tau", "detach", "w_min", "renormalise", "shift_weight", "sft_weight")
        args = CWDPOConfig(**self._arguments("stage2", s), reference=s.reference, **{n: getattr(s, n) for n in names})
        cache = self.folder / "reference" / "logps.sqlite"

        def make(model: Any, **common: Any) -> CWDPOTrainer:
            return CWDPOTrainer(model, args=args, train_dataset=groups, reference_cache=cache, **common)

        self._train("stage2", s, start, make)

    def _arguments(self, stage: str, s: StageSection) -> dict[str, Any]:
        """Return the stage's training arguments."""
        recipe, processes = self.recipe, int(os.environ.get("WORLD_SIZE", "1"))
        micro = min(s.micro_batch_size, max(1, s.batch_size // processes))
        if s.batch_size % (micro * processes):
            raise RecipeError(
                f"{stage}.batch_size = {s.batch_size} is not a multiple of {micro} prompts × {processes} processes"
            )
        return {
            "output_dir": str(self.folder / stage / "checkpoints"),
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
            "save_steps": s.save_steps,
            "save_strategy": "steps",
            "save_total_limit": 2,
            "seed": recipe.seed,
            "bf16": recipe.model.dtype == "bfloat16",
            "gradient_checkpointing": s.gradient_checkpointing,
            "dataloader_num_workers": recipe.data.workers,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "report_to": recipe.report_to or "none",
            "disable_tqdm": True,
            "include_eos": s.include_eos,
            "max_length": recipe.model.max_length,
        }

    def _train(self, stage: str, s: StageSection, start: str, make: Callable[..., Any]) -> None:
        """Train one stage, resuming from its last whole checkpoint."""
        recipe, folder = self.recipe, self.folder / stage
        model = self._trainable(start)
        encoder = self.encoder(start, include_eos=s.include_eos)
        encoder.max_length = sequence_limit(model, recipe.model.max_length)
        scorer = SeparateScorer()
        probes = self._probe_callback(encoder, scorer, folder) if recipe.probes.every else None
        stop = StopOnSignal()
        callbacks = [MetricsFile(folder / "metrics.jsonl"), *([probes] if probes else []), stop]
        callbacks += self.reporter.training(f"{stage} · {getattr(s, 'objective', '')}", probes)
        trainer = make(model, processing_class=encoder.processor, callbacks=callbacks, scorer=scorer, encoder=encoder)
        trainer.quiet()
        if probes is not None:
            probes.attach(trainer)
        checkpoint, broken = last_checkpoint(folder / "checkpoints")
        if broken:
            self.reporter.note(f"{', '.join(broken)} was cut short and is passed over")
        if checkpoint is not None:
            self.reporter.note(f"going on from {checkpoint.name}")
        try:
            result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            stop.release()
        if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(
                f"stopped after update {trainer.state.global_step} of {stage}; a checkpoint is saved. "
                "Run the same command again to go on"
            )
        with atomic_directory(folder / "model") as temporary:
            trainer.save_model(str(temporary))
            (temporary / "training_args.bin").unlink(missing_ok=True)
        facts = {
            "updates": trainer.state.global_step,
            "start": folder_digest(start),
            "model": folder_digest(folder / "model"),
        }
        self._finish(stage, {**facts, "seconds": result.metrics.get("train_runtime")})
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def _probe_callback(self, encoder: PromptEncoder, scorer: SeparateScorer, folder: Path) -> ProbeCallback | None:
        p, two = self.recipe.probes, self.recipe.stage2
        groups = self.groups("held_out")[: p.prompts]
        probes = ProbeSet(groups, encoder, batch_size=p.batch_size, floor=two.floor, tau=two.tau)
        if not len(probes):
            return None
        return ProbeCallback(probes, scorer, folder, every=p.every, distributions=p.distributions)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _evaluation(self) -> dict[str, Any]:
        """Measure held-out prompts before and after the last stage."""
        folder, e, two = self.folder / "evaluation", self.recipe.evaluation, self.recipe.stage2
        if self._done("evaluation"):
            return read_json(folder / "summary.json")
        groups = self.groups("held_out")[-e.prompts :]
        before = self.stage_model("stage1") if two.enabled else self.model_path
        models = {"base": self.model_path, "before": before, "after": self.stage_model("stage2")}
        self.reporter.step("evaluation", f"captions and scores of {len(groups)} held-out prompts")
        captions: dict[str, list[str]] = {}
        for name, path in models.items():
            captions[name] = captions.get(next((n for n in captions if models[n] == path), ""), [])
            captions[name] = captions[name] or caption_groups(
                lambda path=path: self._load(path),
                self.encoder(path),
                groups,
                folder / f"captions_{name}.jsonl",
                key=folder_digest(path),
                batch_size=e.batch_size,
                max_new_tokens=e.max_new_tokens,
                progress=lambda done, total, name=name: self.reporter.progress(f"captions {name}", done, total),
            )
        probes = ProbeSet(
            groups,
            self.encoder(before, include_eos=two.include_eos),
            batch_size=e.batch_size,
            floor=two.floor,
            tau=two.tau,
        )
        scorer = SeparateScorer()
        old, new = self._load(models["before"]), self._load(models["after"])
        readings = {
            "before": probes.read(old, scorer, per_prompt=True)[0],
            "after": probes.read(new, scorer, before=old, per_prompt=True)[0],
        }
        summary, rows = summarise(groups, captions, readings)
        write_jsonl(folder / "rows.jsonl", rows)
        write_json(folder / "summary.json", summary)
        self._finish("evaluation", {"prompts": len(groups)})
        return summary


def summarise(
    groups: Sequence[PromptGroup], captions: Mapping[str, Sequence[str]], readings: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Put captions and teacher-forced readings together.

    Args:
        groups: The held-out prompts.
        captions: By model (`base`, `before`, `after`), one caption per prompt.
        readings: Of `before` and `after`, with their `prompts`.

    Returns:
        The summary (a section per model), and a row per prompt.
    """
    rows: list[dict[str, Any]] = []
    references = [g.references or tuple(r.text for r in g.by_role(CHOSEN)) for g in groups]
    scored = [i for i, r in enumerate(references) if r]
    summary: dict[str, Any] = {"prompts": len(groups)}
    each: dict[str, dict[str, list[Any]]] = {}
    for name, texts in captions.items():
        part: dict[str, Any] = {}
        each[name] = {"caption": list(texts)}
        if scored:
            part["cider"], values = cider([texts[i] for i in scored], [references[i] for i in scored])
            each[name]["cider"] = [None] * len(groups)
            for i, value in zip(scored, values, strict=True):
                each[name]["cider"][i] = value
        if groups and all("scene" in g.facts for g in groups):
            right = [is_correct(t, Scene.from_json(g.facts["scene"])) for t, g in zip(texts, groups, strict=True)]
            part["correct"] = sum(right) / len(right)
            each[name]["correct"] = right
        if name in readings:
            reading = readings[name]
            part |= {k: reading[k] for k in ("ece", "entropy", "top1", "tv", "js") if k in reading}
            part["logp"] = {kind: values["logp_mean"] for kind, values in reading["kinds"].items()}
            part["cooling_weight"] = {kind: values["cooling_weight"] for kind, values in reading["kinds"].items()}
            part["reliability"] = reading["reliability"]
            each[name]["logp"] = [{k: v for k, v in p.items() if k != "id"} for p in reading["prompts"]]
        summary[name] = part
    for i, group in enumerate(groups):
        row: dict[str, Any] = {"id": group.id, "image": group.images[0].path if group.images else None}
        row["references"] = list(references[i])
        row |= {name: {key: values[i] for key, values in columns.items()} for name, columns in each.items()}
        rows.append(row)
    return summary, rows
