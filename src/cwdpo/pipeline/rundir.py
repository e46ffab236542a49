"""A run directory: what is in it, what is done, which recipe made it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from cwdpo._version import __version__
from cwdpo.data import ImageLimits
from cwdpo.errors import RunError
from cwdpo.files import read_json, write_json, write_text
from cwdpo.models.loading import add_lora, folder_digest, freeze_parts, load_model, sequence_limit
from cwdpo.models.processors import load_processor
from cwdpo.pipeline.reporter import Reporter, Silent
from cwdpo.recipe import Recipe
from cwdpo.recipe_files import recipe_differences
from cwdpo.scenes import base_path
from cwdpo.scoring.encode import PromptEncoder, require_template

__all__ = ["RunDirectory"]

STEPS = ("data", "stage1", "stage2", "evaluation")

_FIRST_STEP = {"name": None, "report_to": None, "evaluation": "evaluation", "stage2": "stage2"}
"""First step that a section of the recipe bears on; the sections not named here bear on all of them."""


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

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Hold the directory for this process.

        Raises:
            RunError: It cannot be written to, or another run holds it.
        """
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

    def settle_recipe(self) -> None:
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

    def write_manifest(self) -> None:
        """Keep versions, machine, seed and the content of the model; refuse a model that has changed."""
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

    def done(self, step: str) -> bool:
        """Whether a step is finished."""
        return (self.folder / step / "done.json").is_file()

    def finish(self, step: str, facts: Mapping[str, Any]) -> None:
        """Mark a step finished."""
        write_json(self.folder / step / "done.json", facts)

    def encoder(self, path: str, model: Any = None, *, include_eos: bool = True) -> PromptEncoder:
        """Return the prompt encoder of a model directory; with the model, its length limit is known too."""
        m = self.recipe.model
        processor = load_processor(
            path, min_pixels=m.min_pixels, max_pixels=m.max_pixels, trust_remote_code=m.trust_remote_code
        )
        require_template(processor, path)
        limits = ImageLimits(max_pixels=self.recipe.data.image_pixel_limit)
        longest = m.max_length if model is None else sequence_limit(model, m.max_length)
        return PromptEncoder(processor, include_eos=include_eos, max_length=longest, limits=limits)

    def inference_model(self, path: str) -> Any:
        """Load a model that is not trained, on the GPU where there is one."""
        model = load_model(self.recipe.model, path, trainable=False)
        return model.to("cuda") if torch.cuda.is_available() else model

    def trainable(self, path: str) -> Any:
        """Load a model to train: parts frozen, adapters put on, as the recipe says."""
        m = self.recipe.model
        model = load_model(m, path)
        if m.lora is None:
            freeze_parts(model, m.freeze)
        elif not hasattr(model, "peft_config"):
            torch.manual_seed(self.recipe.seed)
            model = add_lora(model, m, m.lora)
        return model
