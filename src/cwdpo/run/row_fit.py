"""Whether a row fits the model: what only its processor and chat template can tell, found out before any training."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cwdpo.data.images import ImageError
from cwdpo.data.row_context import identity
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import REJECTED, PromptGroup, Response
from cwdpo.errors import DataError
from cwdpo.files import read_json
from cwdpo.run.run_dir import RunDirectory
from cwdpo.scoring.collator import PromptEncoder

__all__ = ["RowFit", "negative_fit", "row_fit"]

_KEPT = 20_000
"""Sets of images whose tokens are remembered."""
_SCENE = 4096
"""Tokens that picture and question of a drawn scene stay below in every family."""


def row_fit(run: RunDirectory, path: str | None = None) -> RowFit:
    """Return what looks at rows as training will encode them: length, placeholders, images, template.

    Args:
        run: The run.
        path: The model; default the one that the run starts from.
    """
    recipe, where = run.recipe, path or run.model_path
    ends = any(s.enabled and s.include_eos for s in (recipe.stage1, recipe.stage2))
    return RowFit(run.encoder(where, _positions(where, recipe.model.trust_remote_code), include_eos=ends))


def negative_fit(run: RunDirectory, path: str) -> Callable[[PromptGroup, str], str | None]:
    """Return what says of a text why a prompt cannot be trained on with it as its rejected response, or None.

    Args:
        run: A run whose data are read.
        path: The model that the stage starts from.
    """
    fit = row_fit(run, path)
    room = read_json(run.folder / "data" / "done.json").get("room")
    if run.recipe.data.path == "scenes":
        room = None if fit.limit is None else fit.limit - _SCENE

    def problem(group: PromptGroup, text: str) -> str | None:
        fits = fit.limit is None or (room is not None and _most_tokens(text) <= room)
        if fits and "<" not in text and "[" not in text:  # as every token that stands for a picture has
            return None
        try:
            fit.require(group.with_responses([Response(text, REJECTED)]))
        except ImageError:
            return None  # told where the picture is used
        except DataError as error:
            return str(error).removeprefix(f"{group.origin or group.id}: ")
        return None

    return problem


def _most_tokens(text: str) -> int:
    """Return what a text's tokens do not exceed: its bytes, also after normalisation, a leading space and an end."""
    return 8 + max(len(form.encode(errors="replace")) for form in (text, unicodedata.normalize("NFKD", text)))


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


class RowFit:
    """Encodes rows; of images that an earlier row had, the number of tokens is known and they are not read again.

    Attributes:
        limit: Most tokens of a row, None without a limit.
        room: Tokens that a response may have beside the longest prompt that was looked at; None without a limit.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._known: dict[tuple[str, ...], int] = {}
        self.limit = self.room = encoder.max_length

    def require(self, group: PromptGroup) -> None:
        """Refuse a row that cannot be encoded.

        Raises:
            DataError: It cannot; `ImageError` where an image cannot be read.
        """
        key = tuple(identity(image) for image in group.images)
        text, response = self._encoder.count_text(group)
        if key in self._known:
            prefix = text + self._known[key]
            self._encoder.require_length(group, prefix, response)
        else:
            prefix = len(self._encoder.encode(group).prefix_ids)
            if len(self._known) < _KEPT:
                self._known[key] = prefix - text
        if self.room is not None and self.limit is not None:
            self.room = min(self.room, self.limit - prefix)

    def __call__(self, group: PromptGroup) -> RowError | None:
        """Return why a row cannot be encoded, or None."""
        try:
            self.require(group)
        except ImageError as error:
            return RowError(error.kind, error.detail)
        except DataError as error:
            return RowError("does not fit the model", str(error).removeprefix(f"{group.origin or group.id}: "))
        return None
