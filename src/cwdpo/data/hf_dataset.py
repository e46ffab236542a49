"""Prompt groups as a dataset: a list of them, or rows converted one at a time, images not yet decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from cwdpo.data.detect_format import format_of_row, undecidable
from cwdpo.data.jsonl_dataset import LazyGroups
from cwdpo.data.open_source import RowReader, row_reader
from cwdpo.data.row_checks import REQUIREMENTS, check_group
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import PromptGroup
from cwdpo.data.tables.parquet import as_arrow
from cwdpo.errors import DataError

__all__ = ["GroupDataset", "groups_from_dataset"]


class GroupDataset(Dataset[PromptGroup]):
    """Prompt groups by index, for a `DataLoader`; picklable, so that workers can hold it."""

    def __init__(self, rows: Sequence[PromptGroup] | Any, convert: _Convert | None = None) -> None:
        """Make a dataset.

        Args:
            rows: Prompt groups; or, with `convert`, rows of any kind by index.
            convert: Makes the group of a row when it is asked for.
        """
        self._rows = rows
        self._convert = convert

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def stamp(self) -> str | None:
        """What changes whenever the rows change, where they lie in a file of a run; None otherwise."""
        return self._rows.stamp if isinstance(self._rows, LazyGroups) else None

    def __getitem__(self, index: int) -> PromptGroup:
        """Return one group.

        Raises:
            DataError: The row cannot be used: which, and why.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"index {index} in {count} groups")
        place = index % count
        return self._rows[place] if self._convert is None else self._convert(self._rows[place], place)

    def __getitems__(self, indices: Sequence[int]) -> list[PromptGroup]:
        """Return several groups (what a `DataLoader` asks for)."""
        return [self[i] for i in indices]


class _Convert:
    """Makes the group of one row of a dataset in memory."""

    def __init__(self, reader: RowReader, root: Path, require: str) -> None:
        self._reader = reader
        self._root = root
        self._require = require

    def __call__(self, row: Any, index: int) -> PromptGroup:
        value = row if isinstance(row, Mapping) else row.to_pylist()[0]
        context = RowContext("dataset", index + 1, self._root)
        try:
            group = self._reader(value, context)[0]
            check_group(group, self._require)
        except RowError as error:
            raise DataError(f"dataset row {index + 1}: {error}") from error
        return group


def groups_from_dataset(
    dataset: Any, *, format: str = "auto", image_root: str | Path | None = None, require: str = "pair"
) -> GroupDataset:
    """Return the rows of a dataset in memory as prompt groups, each converted when it is asked for.

    Args:
        dataset: `datasets.Dataset` with the columns of TRL (or ours, ms-swift's, LLaMA-Factory's), a list of such
            rows, a list of prompt groups, or a `GroupDataset`, which is returned as it is.
        format: Whose columns they are; `auto` tells it from the first row.
        image_root: Folder that relative image paths start from; None: the working directory.
        require: `chosen`, `pair` or `response`, as in `DataSource`.

    Raises:
        DataError: Not such a dataset, empty, or of unknown columns.
    """
    if require not in REQUIREMENTS:
        raise DataError(f"require = {require!r}: must be one of {', '.join(REQUIREMENTS)}")
    if isinstance(dataset, GroupDataset):
        return dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or isinstance(dataset, (str, Mapping)):
        remedy = "pass one of its splits" if isinstance(dataset, Mapping) else "pass a datasets.Dataset or a list"
        raise DataError(f"a dataset must have a length and rows by index, not {type(dataset).__name__}; {remedy}")
    if len(dataset) == 0:
        raise DataError("the dataset has no rows")
    first = dataset[0] if not _is_stored(dataset) else as_arrow(dataset)[0].to_pylist()[0]
    if isinstance(first, PromptGroup):
        return GroupDataset(dataset)
    if not isinstance(first, Mapping):
        raise DataError(f"dataset row 1: must be an object or a PromptGroup, not {type(first).__name__}")
    name = format if format != "auto" else format_of_row(first, Path("dataset"))
    if name is None:
        raise undecidable(Path("dataset"), first)
    rows = as_arrow(dataset) if _is_stored(dataset) else dataset
    root = Path.cwd() if image_root is None else Path(image_root).absolute()
    return GroupDataset(rows, _Convert(row_reader(name), root, require))


def _is_stored(dataset: Any) -> bool:
    """Return whether rows may be had as Arrow: a `datasets.Dataset` without a transform of the user's own."""
    return hasattr(dataset, "with_format") and getattr(dataset, "format", {}).get("type") != "custom"
