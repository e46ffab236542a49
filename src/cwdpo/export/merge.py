"""A run's model in the layout of Hugging Face: its adapter merged into the base, or its weights as they are."""

from __future__ import annotations

import gc
import importlib.util
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cwdpo.devices import device
from cwdpo.errors import ModelError, RunError, one_line
from cwdpo.export.card import card_of
from cwdpo.export.compare_logits import logits_of, rows_to_check
from cwdpo.files import read_json, remove
from cwdpo.models.identity import folder_digest
from cwdpo.models.loading import load_model
from cwdpo.models.model_checks import require_model
from cwdpo.models.quantized import is_quantized
from cwdpo.outputs import LIST, OwnedFolder
from cwdpo.recipe import ModelSection
from cwdpo.report.read_run import read_runs
from cwdpo.report.run_record import STAGES, RunRecord

__all__ = ["DTYPES", "Exported", "export_model", "trained_stage"]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of logits, as a part of the largest logit: what rounding the weights once may come to."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "adapter_*", "README.md")
"""Files of a trained model that its export has of its own."""

_OURS = ("*.json", "*.safetensors", "*.jinja", "*.gguf", "README.md")
"""Names of files that an export writes."""


@dataclass(frozen=True)
class Exported:
    """An exported model, and how far it is from the one that was trained.

    Attributes:
        source: The model that was trained.
        how: `merged` into the base, or `copied`.
        dtype: Type of its weights.
        rows: On how many rows logits were compared.
        difference: Largest difference to the trained model's logits.
        limit: What it may be.
        moved: How far training moved the logits at most; None where the base was not loaded.
        quantized: Largest difference to the logits of the trained model on its base in 4 bits, where it has such a
            base; that of the quantisation.
    """

    source: Path
    how: Literal["merged", "copied"]
    dtype: str
    rows: int
    difference: float
    limit: float
    moved: float | None = None
    quantized: float | None = None

    @property
    def sentence(self) -> str:
        """What was done and how near the two models are."""
        where = (
            f"Adapter merged into its base, weights in {self.dtype}"
            if self.how == "merged"
            else f"Weights in {self.dtype}"
        )
        said = f"{where}. Largest difference of logits to the trained model on {self.rows} rows: {self.difference:.2g}"
        said += f" (limit {self.limit:.2g}"
        said += f"; training moved them by up to {self.moved:.2g})." if self.moved is not None else ")."
        if self.quantized is not None:
            said += f" On its base in 4 bits, as it was trained, they differ by up to {self.quantized:.2g}."
        return said


def trained_stage(run: RunRecord, stage: str | None = None) -> str:
    """Return the stage whose model is exported: the last one that is finished, or the one that is asked for.

    Raises:
        RunError: It is not finished, or its model was changed since.
    """
    finished = [name for name in reversed(STAGES) if run.json(f"{name}/done.json")]
    if not finished or stage not in (None, *finished):
        raise RunError(
            f"{run.folder}: {STAGES[stage] if stage else 'no stage'} is finished; resume it with `cwdpo train`"
            + (f", or export {finished[0]}" if finished else "")
        )
    chosen = stage or finished[0]
    model = run.folder / chosen / "model"
    require_model(str(model))
    if folder_digest(model) != run.json(f"{chosen}/done.json").get("model"):
        raise RunError(f"{model}: was changed or damaged since it was trained; put it back, or train it again")
    return chosen


def export_model(
    folder: Path,
    out: Path,
    *,
    stage: str | None = None,
    dtype: str | None = None,
    rows: int = 8,
    limit: float | None = None,
) -> Exported:
    """Write the model of a run to a folder, which plain transformers loads, and compare the two.

    The base of an adapter is read in float32, whatever it was trained in; adapter and base are added there and rounded
    once. What is compared is computed in float32.

    Args:
        folder: The run directory.
        out: The folder to write: new, empty, or that of an earlier export.
        stage: `stage1` or `stage2`; default the last that is finished.
        dtype: Type of the weights; default the base's own, or that of a model that was trained in full.
        rows: How many rows of the run logits are compared on.
        limit: Largest difference of logits that is allowed; default a small part of the largest logit, by type.

    Raises:
        RunError: The run has no such model, or `out` holds what no export wrote.
        ModelError: The model cannot be loaded, or what was written differs from it. Nothing is kept then.
    """
    (run,) = read_runs([folder.absolute()])
    source = run.folder / trained_stage(run, stage) / "model"
    base = _base_of(source)
    _require_same_base(run, base)
    section = ModelSection(
        path=str(source), trust_remote_code=run.recipe.get("model", {}).get("trust_remote_code", False)
    )
    groups = rows_to_check(run.folder, rows)
    with OwnedFolder(out, "export") as owned:
        for file in owned.folder.iterdir():  # before the work: what was changed since, or is somebody's
            if file.name != LIST and any(file.match(pattern) for pattern in _OURS):
                owned.claim(file, grows=False)
        owned.claim(owned.folder / "model", grows=False)  # files of a killed export go with the next
        with _draft(owned.folder / ".model.tmp") as draft:
            model: Any = load_model(section, source, trainable=False).to(device())
            if is_quantized(model):
                raise ModelError(
                    f"{base or source}: is quantised on disk; train on the original model to export it whole"
                )
            trained = logits_of(model, source, groups)
            moved = None
            if base is not None:
                with model.disable_adapter():
                    moved = trained.difference(logits_of(model, source, groups))
                model = _merged(model, source)
            chosen = DTYPES[dtype] if dtype else _own_dtype(base or str(source), section)
            model.to(chosen).config.use_cache = True  # training turns it off
            model.save_pretrained(draft, max_shard_size="5GB")
            del model
            gc.collect()
            _copy_rest(source, draft)
            plain = section.model_copy(update={"path": str(draft)})
            exported = logits_of(load_model(plain, trainable=False).to(device()), draft, groups)
            difference = trained.difference(exported)
            allowed = _TOLERANCE[chosen] * trained.largest if limit is None else limit
            if difference > allowed:
                raise ModelError(
                    f"{source}: exported in {_name(chosen)}, its logits differ by up to {difference:.3g} from those of "
                    f"the trained model, more than {allowed:.3g}; nothing was written. Pass --dtype float32, or --limit"
                )
            quantized = None
            if run.recipe.get("model", {}).get("quantization") and importlib.util.find_spec("bitsandbytes"):
                packed = ModelSection.model_validate(run.recipe["model"])
                on_packed = logits_of(load_model(packed, source, trainable=False).to(device()), source, groups)
                quantized = on_packed.difference(exported)
            how: Literal["merged", "copied"] = "copied" if base is None else "merged"
            done = Exported(source, how, _name(chosen), len(groups), difference, allowed, moved, quantized)
            card = card_of(run, source.parent.name, adapter=False, notes=[done.sentence])
            (draft / "README.md").write_text(card, encoding="utf-8")
            _move(draft, owned)
    return done


@contextmanager
def _draft(folder: Path) -> Generator[Path]:
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _base_of(source: Path) -> str | None:
    settings = source / "adapter_config.json"
    return str(read_json(settings)["base_model_name_or_path"]) if settings.is_file() else None


def _require_same_base(run: RunRecord, base: str | None) -> None:
    """Refuse a base that is not the one that the adapter was trained on any more."""
    known = run.manifest.get("model", {})
    if base is not None and known.get("path") == base and known.get("digest") != folder_digest(base):
        raise ModelError(f"{base}: has changed since the adapter was trained on it; put the base back as it was")


def _merged(model: Any, source: Path) -> Any:
    try:
        return model.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{source}: the adapter cannot be merged: {one_line(error)}") from error


def _own_dtype(path: str, section: ModelSection) -> torch.dtype:
    """Return the type that a model's config names; float32, which loses nothing, where it names none."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(path, trust_remote_code=section.trust_remote_code)
    named = config.dtype or config.get_text_config().dtype
    return named if named in _TOLERANCE else torch.float32


def _copy_rest(source: Path, draft: Path) -> None:
    """Copy processor, tokenizer, chat template and code: what is not of the weights and not there yet."""
    for file in sorted(source.iterdir()):
        target = draft / file.name
        if file.is_file() and not target.exists() and not any(file.match(pattern) for pattern in _WEIGHTS):
            target.write_bytes(file.read_bytes())


def _move(draft: Path, owned: OwnedFolder) -> None:
    """Put the files of a draft in their place; those of an earlier export go."""
    new = {file.name for file in draft.iterdir()}
    for old in owned.folder.iterdir():
        if old.name not in new and old.name != LIST and old != draft:
            remove(old)
    for file in sorted(draft.iterdir()):
        target = owned.folder / file.name
        owned.claim(target, grows=False)
        owned.wrote(target, file)
        file.replace(target)
