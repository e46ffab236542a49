"""Whether a row fits the model: what only its processor and chat template can tell, found out before any training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cwdpo.data.images import ImageError
from cwdpo.data.row_context import identity
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import DataError
from cwdpo.files import read_json
from cwdpo.run.run_dir import RunDirectory
from cwdpo.scoring.collator import PromptEncoder

__all__ = ["Fit", "row_fit"]

Fit = Callable[[PromptGroup], RowError | None]
"""Says of a row why the model cannot be trained on it, or None."""

_KEPT = 20_000
"""Sets of images whose tokens are remembered."""


def row_fit(run: RunDirectory) -> Fit:
    """Return what looks at rows as training will encode them: length, placeholders, images, template."""
    recipe, path = run.recipe, run.model_path
    ends = any(s.enabled and s.include_eos for s in (recipe.stage1, recipe.stage2))
    encoder = run.encoder(path, _positions(path, recipe.model.trust_remote_code), include_eos=ends)
    return _Fitting(encoder).problem


def _positions(path: str, trusted: bool) -> Any:
    """Return what has a model's configuration in place of the model, or None where none can be read."""
    from transformers import AutoConfig

    adapter = Path(path) / "adapter_config.json"
    if adapter.is_file():
        return _positions(str(read_json(adapter).get("base_model_name_or_path")), trusted)
    try:
        return SimpleNamespace(config=AutoConfig.from_pretrained(path, trust_remote_code=trusted))
    except (OSError, ValueError, KeyError):
        return None  # said when the model is loaded


class _Fitting:
    """Encodes rows; of images that an earlier row had, the number of tokens is known and they are not read again."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._known: dict[tuple[str, ...], int] = {}

    def problem(self, group: PromptGroup) -> RowError | None:
        """Return why a row cannot be encoded, or None."""
        key = tuple(identity(image) for image in group.images)
        try:
            text, response = self._encoder.count_text(group)
            if key in self._known:
                self._encoder.require_length(group, text + self._known[key], response)
            else:
                images = len(self._encoder.encode(group).prefix_ids) - text
                if len(self._known) < _KEPT:
                    self._known[key] = images
        except ImageError as error:
            return RowError(error.kind, error.detail)
        except DataError as error:
            return RowError("does not fit the model", str(error).removeprefix(f"{group.origin or group.id}: "))
        return None
