"""A model that is only read, with its prompt encoder."""

from __future__ import annotations

from typing import Any

from cwdpo.devices import device
from cwdpo.models.loading import load_model, sequence_limit
from cwdpo.models.model_checks import require_model, require_tokenizer
from cwdpo.models.processors import load_processor
from cwdpo.recipe import ModelSection
from cwdpo.scenes import base_path
from cwdpo.scoring.collator import PromptEncoder, require_template

__all__ = ["open_model"]


def open_model(path: str, *, exact: bool = False) -> tuple[Any, PromptEncoder]:
    """Load a model to run it, in bfloat16 on a GPU unless it must be `exact`.

    Args:
        path: Model directory, hub id, or `scenes`.
        exact: Compute in float32 everywhere.

    Raises:
        ModelError: It cannot be used.
    """
    path = str(base_path()) if path == "scenes" else path
    require_model(path)
    dtype = "float32" if exact or device().type == "cpu" else "bfloat16"
    model = load_model(ModelSection(path=path, dtype=dtype), trainable=False)
    processor = load_processor(path)
    require_template(processor, path)
    require_tokenizer(processor, path)
    return model.to(device()), PromptEncoder(processor, max_length=sequence_limit(model, None))
