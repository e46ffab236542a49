"""What can be said of a model directory before its weights are loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cwdpo.errors import ModelError, one_line

__all__ = ["model_folder", "require_model", "require_tokenizer"]

_HUB_ID = re.compile(r"[A-Za-z0-9_-][\w.-]*/[\w.-]+", re.ASCII)


def model_folder(path: str | Path) -> Path | None:
    """Return the directory of a model, or None of a hub id.

    Raises:
        ModelError: It is neither: missing, no directory, or a name that no file can have.
    """
    where, folder = one_line(path, 200), Path(path)
    try:
        if folder.is_dir():
            return folder
        there, beside = folder.exists(), folder.parent.exists()
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: no such model directory: {one_line(error, 120)}") from error
    if there:
        raise ModelError(f"{where}: a model is a directory with config.json and *.safetensors, this is a file")
    if not _HUB_ID.fullmatch(str(path)) or beside:
        raise ModelError(f"{where}: no such model directory; give a directory or a hub id such as owner/name")
    return None


def require_model(path: str) -> None:
    """Find out in a moment whether a model directory is one, before data is read or a model is loaded.

    Args:
        path: A directory, of a model or of an adapter; a hub id is let through.

    Raises:
        ModelError: It is missing, no directory, without config or weights, or a file of weights is cut short.
    """
    folder = model_folder(path)
    if folder is None:
        return
    for file in folder.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ModelError(f"{file}: is a pipe or a device, not a model's file; remove it")
        if file.name.endswith("config.json") and file.is_file():
            _json_object(file)  # transformers takes defaults in place of a damaged generation_config.json
    settings = folder / "adapter_config.json"
    if settings.is_file():
        base = _json_object(settings).get("base_model_name_or_path")
        if not isinstance(base, str):
            raise ModelError(f"{settings}: names no base model; save the adapter with peft's save_pretrained")
        if (Path(base) / settings.name).is_file():
            raise ModelError(f"{path}: is an adapter, and its base {base} is one too; merge that one first")
        try:
            require_model(base)
        except ModelError as error:
            raise ModelError(f"{path}: is an adapter, and its base cannot be used: {error}") from None
    elif not (folder / "config.json").is_file():
        raise ModelError(f"{path}: no config.json; a model directory in Hugging Face layout is needed")
    else:
        _require_vision_language(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{path}: no weights (*.safetensors) in it; save the model with save_pretrained")
    for file in weights:
        _require_whole(file)


def require_tokenizer(processor: Any, path: str) -> None:
    """Refuse a tokenizer that transformers made up because its files are missing.

    Raises:
        ModelError: It knows no token.
    """
    if processor.tokenizer.vocab_size == 0 or len(processor.tokenizer) <= len(processor.tokenizer.all_special_ids):
        raise ModelError(
            f"{path}: the tokenizer has no vocabulary; copy tokenizer.json (or tokenizer.model, vocab.json) of the "
            "original model into the folder"
        )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({one_line(error, 120)})") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: must hold a JSON object, not a {type(found).__name__}")
    return found


def _require_vision_language(folder: Path) -> None:
    """Refuse a model type of which transformers knows that it reads no images."""
    from transformers import CONFIG_MAPPING, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

    settings = _json_object(folder / "config.json")
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise ModelError(f"{folder / 'config.json'}: has no model_type; is it the config.json of the model?")
    if "auto_map" in settings:
        return
    for part in ("text_config", "vision_config"):
        if part in settings and not settings[part]:  # transformers would build a part of its own sizes, of gigabytes
            raise ModelError(f"{folder / 'config.json'}: {part} is empty; copy the config.json of the model again")
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{folder}: model type {kind!r} is not known to transformers {__version__}; is it newer?")
    if kind in MODEL_MAPPING_NAMES.keys() - MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys():
        raise ModelError(
            f"{folder}: {kind!r} is not a vision-language model; give one that takes images and text (Qwen2.5-VL, …)"
        )


def _require_whole(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file}: the weights are damaged or cut short ({one_line(error, 120)}); copy the file again"
        ) from error
