"""Parquet files and datasets that `save_to_disk` wrote: rows read from disk, image bytes left there."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from cwdpo.data.tables.raw_row import RawRow
from cwdpo.data.tables.text_tables import require_file
from cwdpo.errors import DataError, one_line

__all__ = ["arrow_rows", "as_arrow", "is_saved_dataset", "load_parquet", "load_saved", "parquet_head"]


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder is a dataset or a dictionary of datasets as `save_to_disk` writes them."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def load_saved(path: Path, split: str | None) -> Any:
    """Return the `datasets.Dataset` of a `save_to_disk` folder.

    Raises:
        DataError: Damaged, or it has not that split.
    """
    import datasets  # takes about a second to import: only where it is needed

    for file in sorted(path.rglob("*")):
        if not file.is_dir() and not file.is_file():
            raise DataError(f"{file}: is a pipe, device or socket, not a file of a saved dataset")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets and pyarrow raise of every kind on damaged files
        raise DataError(f"{path}: not a saved dataset that can be read ({one_line(error, 120)})") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    names = list(loaded)
    name = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if name not in names:
        wanted = f"no split {split!r}" if split else "several splits"
        raise DataError(f"{path}: {wanted}; set split to one of {', '.join(map(str, names))}")
    return loaded[name]


def load_parquet(files: Sequence[Path], cache: Path | None = None) -> Any:
    """Return Parquet files as one memory-mapped `datasets.Dataset`.

    Args:
        files: The files.
        cache: Folder for its Arrow copy; None: the cache of `datasets`.

    Raises:
        DataError: A file is not Parquet.
    """
    import datasets
    import pyarrow.parquet

    for file in files:
        require_file(file)
        try:
            rows = pyarrow.parquet.ParquetFile(file).metadata.num_rows
        except Exception as error:  # as above
            raise DataError(f"{file}: not a Parquet file that can be read ({one_line(error, 120)})") from error
        if rows == 0:
            raise DataError(f"{file}: no rows")
    place: dict[str, Any] = {} if cache is None else {"cache_dir": str(cache)}
    try:
        with _quiet():
            return datasets.Dataset.from_parquet([str(file) for file in files], **place)
    except Exception as error:  # as above
        names = ", ".join(file.name for file in files[:3])
        raise DataError(f"{names}: cannot be read as one table ({one_line(error, 160)})") from error


def parquet_head(file: Path) -> Iterator[RawRow]:
    """Yield the first rows of a Parquet file, as far as its format shows in them.

    Raises:
        DataError: It is not Parquet, or has no rows.
    """
    import pyarrow.parquet

    require_file(file)
    try:
        table = next(pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=20), None)
        rows: list[Any] = table.to_pylist() if table is not None else []
    except Exception as error:  # as above
        raise DataError(f"{file}: not a Parquet file that can be read ({one_line(error, 120)})") from error
    if not rows:
        raise DataError(f"{file}: no rows")
    for number, value in enumerate(rows, 1):
        yield RawRow(number, value, file=file.name)


def as_arrow(dataset: Any) -> Any:
    """Return a dataset whose rows come as Arrow tables: images stay encoded."""
    return dataset.with_format("arrow")


def arrow_rows(dataset: Any, name: str) -> Iterator[RawRow]:
    """Yield the rows of a `datasets.Dataset`, one in memory at a time, images as `{bytes, path}`.

    Raises:
        DataError: No rows, or one with text that is not UTF-8.
    """
    table = as_arrow(dataset)
    if len(table) == 0:
        raise DataError(f"{name}: no rows")
    for index in range(len(table)):
        try:
            value = table[index].to_pylist()[0]
        except (OverflowError, ValueError) as error:  # text or dates that Python does not have
            raise DataError(f"{name}: row {index + 1} cannot be read ({one_line(error, 120)})") from error
        yield RawRow(index + 1, value, file=name, table=table)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the progress bars of `datasets` off while a file is converted."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
