"""A run directory: what is in it, what is done, which recipe made it."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from cwdpo._version import __version__
from cwdpo.data import ImageLimits
from cwdpo.devices import device
from cwdpo.errors import RecipeError, RunError
from cwdpo.files import file_digest, read_json, remove, write_json, write_text
from cwdpo.models.fsdp import share_weights, too_large
from cwdpo.models.identity import folder_digest, hub_revision
from cwdpo.models.loading import add_lora, load_model, sequence_limit
from cwdpo.models.meta_init import is_bare
from cwdpo.models.model_checks import require_model, require_tokenizer
from cwdpo.models.parts import freeze_parts
from cwdpo.models.processors import load_processor
from cwdpo.outputs import LIST, OwnedFolder
from cwdpo.plugins import user_file, without_user_files
from cwdpo.processes import processes
from cwdpo.recipe import HOW_TO_ASK, Recipe
from cwdpo.recipe.load_recipe import load_recipe, recipe_differences
from cwdpo.run.progress import Reporter, Silent
from cwdpo.safe_yaml import parse_yaml
from cwdpo.scenes import base_path
from cwdpo.scoring.collator import PromptEncoder, require_template

__all__ = ["RunDirectory", "placed", "resolved"]

READS = {
    "data": ("data", "model.max_length", "model.min_pixels", "model.max_pixels"),
    "correction": ("model", "negatives"),
    "negatives/stage1": ("stage1.enabled", "stage1.objective", "stage1.regularizer", "stage1.include_eos"),
    "stage1": ("seed", "stage1", "data.group_by_length", "probes"),
    "negatives/stage2": ("negatives.stage2", "stage2.enabled", "stage2.objective", "stage2.include_eos"),
    "reference": ("stage2.reference", "stage2.batch_size", "stage2.micro_batch_size"),
    "stage2": ("stage2", "negatives.stage2.refresh"),
    "evaluation": ("evaluation",),
}
"""The steps in their order, and the recipe's keys that each is the first to read; a longer key goes before a shorter.

A step also depends on all that the steps before it read.
"""

_FREE = (
    *("name", "report_to", "probes.on_diagnosis", "data.workers", "evaluation.samples"),
    "model.path",  # its content counts, and the manifest has it
    *("model.vision_cache_gib", "model.vision_cache_folder", "model.vision_cache_folder_gib"),
    *(f"{stage}.{key}" for stage in ("stage1", "stage2") for key in ("save_steps", "activation_offloading")),
    *(f"negatives.editor.{key}" for key in HOW_TO_ASK),
    *(f"negatives.{stage}.generator.{key}" for stage in ("stage1", "stage2") for key in HOW_TO_ASK),
)
"""Keys that change no step's result."""

_LIBRARIES = ("stage1/checkpoints/checkpoint-*", "stage2/checkpoints/checkpoint-*", "data/images/*", ".rows.*")
"""Files of a run that are not written one by one through `cwdpo.files`, or are as many as the rows; `.rows.*` is where
rows lie while they are read."""


def first_reader(key: str) -> str | None:
    """Return the first step whose result depends on a dotted key of the recipe, None of a key that changes none.

    Raises:
        KeyError: No step is known to read it.
    """
    readers = {name: step for step, names in READS.items() for name in names} | dict.fromkeys(_FREE)
    while key not in readers and "." in key:
        key = key.rpartition(".")[0]
    return readers[key]


def resolved(model: str) -> str:
    """Return where a model lies that a recipe names: the embedded one, a folder, or a name on a hub."""
    if model == "scenes":
        return str(base_path())
    # Absolute, because an adapter keeps the path of its base and may be read from another folder.
    folder = Path(model)
    return str(folder.absolute()) if folder.is_dir() else model


def placed(model: Any) -> Any:
    """Put a model that is not trained where it is run: on the GPU where there is one, or a part of it on each.

    Where the processes share weights, all of them call this together.
    """
    team = processes()
    if team.in_step and any(team.gather(is_bare(model) or too_large(model))):
        assert team.size > 1, "a model whose weights are shared is run by all processes or by none"
        return share_weights(model)
    return model.to(device())


def _user_files(value: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the user's own files that a recipe names as `my_file.py:Name`, each with its dotted key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            where = f"{key}.{name}".lstrip(".")
            yield from _user_files(str(name), where)
            yield from _user_files(inner, where)
    elif isinstance(value, list):
        for inner in value:
            yield from _user_files(inner, key)
    elif isinstance(value, str) and (asked := user_file(value)) is not None and asked[0].is_file():
        yield key.split(value)[0].rstrip("."), asked[0]


@dataclass
class RunDirectory:
    """A folder and the recipe that fills it.

    Attributes:
        folder: The run directory.
        recipe: What the run is.
        reporter: Who is told.
    """

    folder: Path
    recipe: Recipe
    reporter: Reporter = field(default_factory=Silent)
    _owned: OwnedFolder | None = None
    _compared: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self.folder = Path(self.folder).absolute()

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Hold the directory for this process and those that work with it.

        Raises:
            RunError: It is not empty and no run's, cannot be written to, another run holds it, or not all processes
                see it.
        """
        team = processes()
        with contextlib.ExitStack() as stack:
            self._compared.clear()
            team.lead(lambda: self._take(stack))
            team.share(self._require_seen)
            yield

    def _take(self, stack: contextlib.ExitStack) -> None:
        self._owned = stack.enter_context(OwnedFolder(self.folder, "train"))
        self._owned.claim_names(*_LIBRARIES)

    def _require_seen(self) -> None:
        if not (self.folder / LIST).is_file():
            raise RunError(
                f"{self.folder}: process {processes().rank} on {platform.node()} does not see it; the run directory "
                "must be on a file system that all machines share"
            )

    def settle(self) -> None:
        """Keep recipe and manifest beside the results.

        Raises:
            RunError: The recipe, or the model that it starts from, has changed under a step that was begun; or a file
                of the run was changed or damaged.
        """
        recipe, manifest = self.folder / "recipe.yaml", self.folder / "manifest.json"
        for kept in (recipe, manifest):
            gone = not kept.is_file() and bool(self.begun("data"))
            if gone or (self._owned is not None and self._owned.changed(kept.name)):
                raise RunError(f"{kept}: {'is gone' if gone else 'was changed'}; put it back, or choose another --out")
        if recipe.is_file():
            self._refuse_changes(recipe)
        for step in (*READS, "probes"):  # also those that are not finished, or that no later step reads again
            self.require_unchanged(step)
        self._write_manifest(manifest)
        write_text(recipe, self.recipe.to_yaml())

    def require_unchanged(self, step: str) -> None:
        """Compare what a step wrote with what lies there now, once.

        Raises:
            RunError: A file was changed or damaged.
        """
        if self._owned is None or step in self._compared:
            return
        if (file := self._owned.changed(step)) is not None:
            raise RunError(
                f"{file}: was changed or damaged since this run wrote it; put it back, or move {self.folder / step} "
                "away to have that step done again"
            )
        self._compared.add(step)

    def begun(self, first: str) -> list[str]:
        """Return the steps from `first` on that have left something; data counts from when it is whole."""
        steps = list(READS)[list(READS).index(first) :]
        return [step for step in steps if (self.done(step) if step == "data" else (self.folder / step).exists())]

    def _refuse_changes(self, path: Path) -> None:
        try:
            before = parse_yaml(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            before = None
        if not isinstance(before, dict):
            raise RunError(f"{path}: is not the recipe that a run keeps; choose another --out")
        with contextlib.suppress(RecipeError), without_user_files():  # a key that came later was at its default then
            before = load_recipe(base=before).model_dump(mode="json")
        for difference in recipe_differences(before, self.recipe.model_dump(mode="json")):
            first = self._first_reader(difference.split(" ")[0])
            if first is not None and (begun := self.begun(first)):
                raise RunError(
                    f"{self.folder}: the step {begun[0]} was made with another recipe: {difference}; choose another "
                    f"--out, or move {' and '.join(begun)} away to have that done again"
                )
            if first == "data":
                remove(self.folder / "data")

    def _first_reader(self, key: str) -> str | None:
        """Return the first step of this run whose result depends on a dotted key of the recipe."""
        stops_early = self.recipe.probes.early_stop is not None or key.startswith("probes.early_stop")
        if key.startswith("probes.") and not stops_early and self.done("stage1"):
            return "stage2"  # readings of Stage 1 stay as they are; its weights do not depend on them
        return first_reader(key)

    def _contents(self) -> dict[str, str]:
        """Return digests of what the recipe names besides data and the model, by `KEY PATH`."""
        recipe = self.recipe
        files = [*_user_files(recipe.model_dump(mode="json"))]
        if recipe.probes.path is not None and Path(recipe.probes.path).is_file():
            files.append(("probes.path", Path(recipe.probes.path)))
        contents = {f"{key} {file}": file_digest(file) for key, file in files}
        if (teacher := recipe.negatives.correction.model) is not None and not self.done("correction"):
            contents[f"negatives.correction.model {teacher}"] = folder_digest(resolved(teacher))
        return contents

    def _write_manifest(self, path: Path) -> None:
        """Keep versions, machine, seed and the content of what the recipe names; refuse what has changed."""
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
            "model": {
                "path": self.model_path,
                "digest": folder_digest(self.model_path),
                "revision": hub_revision(self.model_path),
            },
        }
        before = read_json(path, model=dict) if path.is_file() else {"model": {}}
        model, contents, known = manifest["model"], self._contents(), before.get("contents", {})
        named = [
            (f"model.path {self.model_path}", before["model"].get(key), model[key]) for key in ("digest", "revision")
        ]
        named += [(name, known.get(name), digest) for name, digest in contents.items()]
        for name, old, new in named:
            if None in (old, new) or old == new:
                continue
            key, _, place = name.partition(" ")
            first = "correction" if key == "model.path" else self._first_reader(key)
            if first is not None and (begun := self.begun(first)):
                raise RunError(
                    f"{self.folder}: {place} ({key}) has changed since the step {begun[0]}; put it back, or choose "
                    "another --out"
                )
            if first == "data" or key == "model.path":
                remove(self.folder / "data")  # rows were read by another file, or looked at with another model
        manifest["contents"] = {**known, **contents}
        write_json(path, manifest)

    @property
    def model_path(self) -> str:
        """The model that the run starts from."""
        return resolved(self.recipe.model.path)

    def stage_model(self, stage: str) -> str:
        """The model that a stage ends with, or the one before it where the stage is left out."""
        if stage == "stage2" and self.recipe.stage2.enabled:
            return str(self.folder / "stage2" / "model")
        return str(self.folder / "stage1" / "model") if self.recipe.stage1.enabled else self.model_path

    def done(self, step: str) -> bool:
        """Whether a step is finished.

        Raises:
            RunError: What it wrote was changed or damaged.
        """
        is_done = (self.folder / step / "done.json").is_file()
        if is_done:
            self.require_unchanged(step)
        return is_done

    def finish(self, step: str, facts: Mapping[str, Any]) -> None:
        """Mark a step finished."""
        self.seal(step)
        write_json(self.folder / step / "done.json", facts)
        self._compared.add(step)

    def seal(self, step: str) -> None:
        """Have what a step has written so far compared whenever the run starts again."""
        if self._owned is not None:
            self._owned.seal(step)

    def encoder(self, path: str, model: Any = None, *, include_eos: bool = True) -> PromptEncoder:
        """Return the prompt encoder of a model directory; with the model, its length limit is known too."""
        m = self.recipe.model
        require_model(path)
        processor = load_processor(
            path, min_pixels=m.min_pixels, max_pixels=m.max_pixels, trust_remote_code=m.trust_remote_code
        )
        require_template(processor, path)
        require_tokenizer(processor, path)
        limits = ImageLimits(max_pixels=self.recipe.data.image_pixel_limit)
        longest = m.max_length if model is None else sequence_limit(model, m.max_length)
        return PromptEncoder(processor, include_eos=include_eos, max_length=longest, limits=limits)

    def inference_model(self, path: str) -> Any:
        """Load a model that is not trained, on the GPU where there is one.

        Where the processes share weights, all of them call this together, and share those of a large one, which the
        first alone reads where `reads_once` is set.

        Raises:
            ModelError: It cannot be loaded, by one of them.
        """
        gc.collect()  # a model that was shared holds itself
        return placed(processes().each(lambda: self._load(path, trainable=False)))

    def trainable(self, path: str, *, shared: bool = True) -> Any:
        """Load a model to train: parts frozen, adapters put on, as the recipe says.

        Args:
            path: Its directory.
            shared: Whether its weights are shared whatever their size, where the processes share weights.
        """
        m = self.recipe.model
        model = self._load(path, shared=shared)
        if m.lora is None:
            freeze_parts(model, m.freeze)
        elif not hasattr(model, "peft_config"):
            torch.manual_seed(self.recipe.seed)
            model = add_lora(model, m, m.lora)
        return model

    def _load(self, path: str, *, trainable: bool = True, shared: bool = False) -> Any:
        """Load a model whole, or in all processes but the first without weights, where they get theirs from it."""
        load, team = partial(load_model, self.recipe.model, path, trainable=trainable), processes()
        if team.reads_once and not team.main:
            bare = load(bare=True)
            if shared or too_large(bare):
                return bare
        return load()
