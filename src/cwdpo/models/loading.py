"""Models and adapters from disk or hub."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from cwdpo.errors import ModelError, one_line
from cwdpo.models.attention import OWN_ATTENTION, use_own_attention
from cwdpo.models.meta_init import build_bare, on_meta
from cwdpo.models.model_checks import model_folder
from cwdpo.models.parts import pattern_of, roots_of
from cwdpo.models.quantized import is_quantized, quantization_config, settle_quantized
from cwdpo.recipe import LoraSection, ModelSection

__all__ = ["add_lora", "load_model", "load_weights", "saved_weights", "sequence_limit"]


def load_model(
    section: ModelSection, path: str | Path | None = None, *, trainable: bool = True, bare: bool = False
) -> Any:
    """Load a vision-language model, or a base with its adapter where `path` holds an adapter.

    Full finetuning keeps float32 weights (bfloat16 is then the type of the computation); with adapters, the frozen
    base is loaded in `section.dtype`, or quantised where `section.quantization` says so, and the adapters stay float32.

    Args:
        section: The recipe's model section.
        path: Directory or hub id; default `section.path`.
        trainable: Whether an adapter found at `path` is to be trained on.
        bare: Build the model without reading its weights, see `cwdpo.models.meta_init`.

    Raises:
        ModelError: The model cannot be loaded, weights are missing from it, or they are quantised and to be trained.
    """
    where = str(path if path is not None else section.path)
    folder = model_folder(where)
    if folder is not None and (folder / "adapter_config.json").is_file():
        return _load_with_adapter(section, folder, trainable=trainable, bare=bare)
    frozen_base = section.lora is not None or section.quantization is not None or not trainable
    model = _load_base(section, where, getattr(torch, section.dtype) if frozen_base else torch.float32, bare=bare)
    if trainable and section.quantization is None and is_quantized(model):
        raise ModelError(
            f"{where}: the weights are quantised, and cannot be trained; set model.quantization: nf4 with model.lora, "
            "or give the original model"
        )
    return model


def _load_base(section: ModelSection, where: str, dtype: torch.dtype, *, bare: bool) -> Any:
    if Path(where).is_dir() and not (Path(where) / "config.json").is_file():
        raise ModelError(f"{where}: no config.json; a model directory in Hugging Face layout is needed")
    settings: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "sdpa" if section.attention in OWN_ATTENTION else section.attention,
        "trust_remote_code": section.trust_remote_code,
    }
    try:
        model = build_bare(where, **settings) if bare else _read_base(section, where, settings)
    except ModelError:
        raise
    except Exception as error:  # a model's settings make transformers raise of every kind
        what = type(error).__name__ + (f": {one_line(error, 400)}" if str(error) else "")
        raise ModelError(f"{where}: the model cannot be loaded: {what}") from error
    model.config.use_cache = False
    if section.attention in OWN_ATTENTION:
        use_own_attention(model, section.attention)
    return model


def _read_base(section: ModelSection, where: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoModelForImageTextToText

    quantized = quantization_config(section, settings["dtype"], pattern_of(("projector", "vision")))
    if quantized is not None:
        settings = settings | {"quantization_config": quantized}
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        where, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    model, info = loaded
    if info["mismatched_keys"]:  # said here: transformers' own error has no names
        name, found, wanted = min(info["mismatched_keys"], key=str)
        raise ModelError(
            f"{where}: {name} has shape {tuple(found)} in the file, and config.json asks for {tuple(wanted)}; take "
            "both from the same model"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{where}: {len(missing)} weights are not in the file (first: {missing[0]}) and would be random; "
            "save the model whole with save_pretrained"
        )
    if section.quantization is not None:
        settle_quantized(model, where)
    return model


def saved_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """Return the weights of a saved model of the same class, whole, by the names that they have in `model`.

    Raises:
        ModelError: They cannot be read, or some are missing.
    """
    # A second copy in memory for a moment, in exchange for the class's own translation of names on disk.
    try:
        loaded, info = type(model).from_pretrained(
            folder, config=model.config, dtype=model.dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: the weights cannot be read: {one_line(error)}") from error
    if info["missing_keys"]:
        raise ModelError(f"{folder}: {len(info['missing_keys'])} weights are missing; use another checkpoint")
    return loaded.state_dict()


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights of a saved model of the same class into `model`, in place.

    Raises:
        ModelError: As `saved_weights`.
    """
    model.load_state_dict(saved_weights(model, folder))


def _load_with_adapter(section: ModelSection, folder: Path, *, trainable: bool, bare: bool) -> Any:
    from peft import PeftConfig, PeftModel, get_peft_model

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # as above
        raise ModelError(f"{folder}: adapter_config.json cannot be read: {one_line(error)}") from error
    if not (folder / "adapter_model.safetensors").is_file():  # peft would unpickle adapter_model.bin, or ask the hub
        raise ModelError(f"{folder}: no adapter_model.safetensors in it; save the adapter with save_pretrained")
    base_path = config.base_model_name_or_path or section.path
    base = _load_base(section, str(base_path), getattr(torch, section.dtype), bare=bare)
    try:
        if bare:
            config.inference_mode = not trainable
            with on_meta(base):
                model = get_peft_model(base, config)
            return model if trainable else model.eval()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
        _require_fit(model, folder)
        return model
    except ModelError:
        raise
    except Exception as error:  # as above
        raise ModelError(f"{folder}: the adapter does not fit its base {base_path}: {one_line(error)}") from error


def _require_fit(model: Any, folder: Path) -> None:
    """Refuse an adapter with weights that are not in its file, or that have no place in the model."""
    from peft import get_peft_model_state_dict, load_peft_weights

    base = model.get_base_model()
    mapping = getattr(base, "_checkpoint_conversion_mapping", {})
    file = set(load_peft_weights(str(folder), device="cpu", key_mapping=mapping))
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if missing := sorted(wanted - file):
        raise ModelError(
            f"{folder}: {len(missing)} weights of the adapter are not in its file (first: {missing[0]}) and would be "
            "untrained; save it again with save_pretrained, and from the model that base_model_name_or_path names"
        )
    own = {name.replace(".base_layer.", ".") for name, _ in base.named_parameters()}  # embeddings may be saved beside
    if foreign := sorted(name for name in file - wanted if name.removeprefix("base_model.model.") not in own):
        raise ModelError(
            f"{folder}: {len(foreign)} weights of the adapter have no place in its base (first: {foreign[0]}); give "
            "the base that it was trained on"
        )


def add_lora(model: Any, section: ModelSection, lora: LoraSection) -> Any:
    """Put fresh adapters on a model; frozen parts get none, `train_fully` parts are trained whole beside them.

    Raises:
        ModelError: No layer matches.
    """
    from peft import LoraConfig, get_peft_model

    skipped = {*section.freeze, *section.train_fully}
    whole = sorted(roots_of(model, section.train_fully))
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules=lora.target_modules,
        exclude_modules=pattern_of(skipped) if skipped else None,
        modules_to_save=whole or None,
        bias="none",
    )
    try:
        with on_meta(model):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora: no adapter could be placed: {one_line(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # what is trained stays float32 on a bfloat16 base
            parameter.data = parameter.data.float()
    return adapted


def sequence_limit(model: Any, asked: int | None) -> int | None:
    """Return the longest sequence the model's positions allow, or the smaller limit that was asked for."""
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    known = getattr(text, "max_position_embeddings", None)
    limits = [n for n in (asked, known) if n is not None]
    return min(limits) if limits else None
