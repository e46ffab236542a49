"""A data source read whole: every row a prompt group, or set aside with its reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cwdpo.data.fields import RowError, excerpt, kind_of
from cwdpo.data.images import ImageError, ImageLimits, image_problem, missing_file
from cwdpo.data.places import DEFAULT_PROMPT, RowContext
from cwdpo.data.readers.captions import CaptionChoice
from cwdpo.data.rules import REQUIREMENTS, check_group
from cwdpo.data.schema import ImageRef, PromptGroup
from cwdpo.data.sources import RowReader, open_source
from cwdpo.data.tables.raw import RawRow
from cwdpo.errors import DataError, one_line
from cwdpo.files import write_jsonl

__all__ = ["BadRow", "DataSource", "LoadedData", "load_groups", "write_rejected"]


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """What to read and how strictly.

    Attributes:
        path: File or folder; `dataset_info.json:name` for LLaMA-Factory.
        format: One of `cwdpo.data.FORMATS`, or `auto`.
        image_root: Folder that relative image paths start from; None: the data file's folder (for caption files also
            its `images`).
        prompt: Question that caption files do not ask.
        captions: Which caption is the chosen answer: `first`, `random` (seeded) or `each` (a group a caption).
        seed: For `captions = random`.
        split: Split of a Karpathy file, a saved dataset or Parquet shards; None: train where there are several.
        on_bad_row: `stop` at the first bad row, or `skip` it.
        max_bad_share: Share of rows that may be skipped, 0 to 1.
        limits: What an image may be.
        check_images: Decode every image now; if not, only see that its file is there.
        need_images: Whether images are asked for at all; if not, their files may be missing.
        workers: Threads that decode; None: one a core, at most 8.
        require: `chosen`, `pair` (chosen and rejected) or `response` (any answer).
        limit: Read at most this many rows; None: all.
    """

    path: str | Path
    format: str = "auto"
    image_root: str | Path | None = None
    prompt: str = DEFAULT_PROMPT
    captions: Literal["first", "random", "each"] = "first"
    seed: int = 0
    split: str | None = None
    on_bad_row: Literal["stop", "skip"] = "stop"
    max_bad_share: float = 0.05
    limits: ImageLimits = field(default_factory=ImageLimits)
    check_images: bool = True
    need_images: bool = True
    workers: int | None = None
    require: Literal["chosen", "pair", "response"] = "chosen"
    limit: int | None = None

    def __post_init__(self) -> None:
        if not str(self.path).strip():
            raise DataError("data.path is empty: give a file or a folder")
        if self.on_bad_row not in ("stop", "skip"):
            raise DataError(f"data.on_bad_row = {self.on_bad_row!r}: must be stop or skip")
        if not 0 <= self.max_bad_share <= 1:
            raise DataError(f"data.max_bad_share = {self.max_bad_share}: must be from 0 to 1, for example 0.05")
        if self.require not in REQUIREMENTS:
            raise DataError(f"require = {self.require!r}: must be one of {', '.join(REQUIREMENTS)}")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"data.limit = {self.limit}: must be at least 1; leave it out to read all rows")
        if self.workers is not None and self.workers < 1:
            raise DataError(f"data.workers = {self.workers}: must be at least 1")


@dataclass(frozen=True)
class BadRow:
    """A row that was set aside.

    Attributes:
        file: Name of the file.
        row: Row from 1 (the line, in text files).
        kind: Rule that it breaks, in the same words for every row.
        reason: The same with particulars, one line.
        raw: Beginning of the row.
    """

    file: str
    row: int
    kind: str
    reason: str
    raw: str

    def to_json(self) -> dict[str, Any]:
        """Return the line of `rejected_rows.jsonl`."""
        return {"file": self.file, "row": self.row, "reason": self.reason, "raw": self.raw}


@dataclass(frozen=True)
class LoadedData:
    """What a source holds.

    Attributes:
        groups: In the order of the file.
        bad_rows: What was set aside, in the order of the file.
        format: The format that was read.
        rows: How many rows were read, good and bad.
    """

    groups: tuple[PromptGroup, ...]
    bad_rows: tuple[BadRow, ...]
    format: str
    rows: int


def load_groups(source: DataSource, *, progress: Callable[[int, int], None] | None = None) -> LoadedData:
    """Read a data source. Rows are read first, then images looked at: a bad row of text is found in seconds.

    Images are never held: each is decoded and let go, in threads.

    Args:
        source: What to read and how strictly.
        progress: Called with the images checked so far and their number.

    Raises:
        DataError: One line: the file cannot be read; a row is bad and `on_bad_row` is `stop`; or too many are.
    """
    choice = CaptionChoice(source.prompt, source.captions, source.seed)
    name, table, reader = open_source(source.path, source.format, source.split, choice)
    root = table.root if source.image_root is None else _folder(source.image_root)
    stem = Path(source.path).name.partition(":")[0].partition(".")[0] or "row"
    rows = _Rows(source, reader, partial(RowContext, root=root, stem=stem))
    for raw in table.rows:
        if rows.count == source.limit:
            break
        rows.add(raw)
    if source.need_images:
        rows.check_images(progress)
    groups, bad = rows.sorted()
    _refuse_too_many(source, bad, rows.count)
    return LoadedData(groups, bad, name, rows.count)


def write_rejected(path: Path, bad_rows: Sequence[BadRow]) -> None:
    """Write `rejected_rows.jsonl`: file, row, reason and the beginning of each row set aside; whole or not at all."""
    write_jsonl(path, [row.to_json() for row in bad_rows])


class _Rows:
    """Rows as they come in: good ones with their groups, bad ones with their reason."""

    def __init__(self, source: DataSource, reader: RowReader, context: Callable[..., RowContext]) -> None:
        self.count = 0
        self._source = source
        self._reader = reader
        self._context = context
        self._good: list[tuple[RawRow, list[PromptGroup]]] = []
        self._bad: list[tuple[int, BadRow]] = []
        self._places: list[int] = []
        self._ids: dict[str, int] = {}

    def add(self, raw: RawRow) -> None:
        """Read one row; where it is bad, raise or set it aside."""
        self.count += 1
        try:
            groups = self._read(raw)
        except RowError as error:
            self._set_aside(self.count, raw.file, raw.number, error, raw.value)
            return
        self._good.append((RawRow(raw.number, excerpt(raw.value), file=raw.file), groups))
        self._places.append(self.count)

    def _read(self, raw: RawRow) -> list[PromptGroup]:
        if raw.error is not None:
            raise raw.error
        if not isinstance(raw.value, Mapping):
            raise RowError("wrong type", f"a row must be an object, not {kind_of(raw.value)}")
        groups = self._reader(raw.value, self._context(file=raw.file, number=raw.number, table=raw.table))
        for group in groups:
            check_group(group, self._source.require)
            if group.id in self._ids:
                raise RowError("duplicate id", f"{group.id!r} is also the id of row {self._ids[group.id]}")
        self._ids.update((group.id, raw.number) for group in groups)
        return groups

    def check_images(self, progress: Callable[[int, int], None] | None) -> None:
        """Look at every image once; rows with one that cannot be used are bad, in the order of the file."""
        good, self._good = self._good, []
        places, self._places = self._places, []
        problems = _ImageProblems(self._source, [g for _, groups in good for g in groups], progress)
        for place, (raw, groups) in zip(places, good, strict=True):
            problem = next((p for group in groups for ref in group.images if (p := problems.of(ref))), None)
            if problem is None:
                self._good.append((raw, groups))
            else:
                self._set_aside(place, raw.file, raw.number, RowError(problem.kind, problem.detail), raw.value)

    def sorted(self) -> tuple[tuple[PromptGroup, ...], tuple[BadRow, ...]]:
        """Return the groups and the bad rows in the order of the file."""
        bad = sorted(self._bad, key=lambda pair: pair[0])
        return tuple(g for _, groups in self._good for g in groups), tuple(row for _, row in bad)

    def _set_aside(self, place: int, file: str, number: int, error: RowError, value: Any) -> None:
        if self._source.on_bad_row == "stop":
            raise DataError(f"{file} row {number}: {error}; mend the row or set data.on_bad_row: skip") from error
        self._bad.append((place, BadRow(file, number, error.kind, excerpt(str(error), 400), excerpt(value))))


class _ImageProblems:
    """Why images cannot be used, each image looked at once, a few ahead of the row that asks."""

    def __init__(
        self, source: DataSource, groups: Sequence[PromptGroup], progress: Callable[[int, int], None] | None
    ) -> None:
        refs = dict.fromkeys(ref for group in groups for ref in group.images)
        self._total = len(refs)
        self._known: dict[ImageRef, ImageError | None] = {}
        self._progress = progress
        self._found = self._look(list(refs), source)

    def of(self, ref: ImageRef) -> ImageError | None:
        """Return why an image cannot be used, or None."""
        while ref not in self._known:
            found, problem = next(self._found)
            self._known[found] = problem
            if self._progress is not None:
                self._progress(len(self._known), self._total)
        return self._known[ref]

    @staticmethod
    def _look(refs: list[ImageRef], source: DataSource) -> Iterator[tuple[ImageRef, ImageError | None]]:
        if not source.check_images:
            yield from ((ref, missing_file(ref)) for ref in refs)
            return
        workers = source.workers or min(8, os.cpu_count() or 1)
        check = partial(image_problem, limits=source.limits)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(refs), 32 * workers):
                part = refs[start : start + 32 * workers]
                yield from zip(part, pool.map(check, part), strict=True)


def _folder(path: str | Path) -> Path:
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise DataError(f"data.image_root = {str(path)!r}: no such folder")
    return folder


def _refuse_too_many(source: DataSource, bad: Sequence[BadRow], rows: int) -> None:
    if rows == 0:
        raise DataError(f"{source.path}: no rows")
    share = len(bad) / rows
    if share <= source.max_bad_share and len(bad) < rows:
        return
    kinds = ", ".join(f"{kind} ({count})" for kind, count in Counter(row.kind for row in bad).most_common(3))
    raise DataError(
        one_line(
            f"{source.path}: {len(bad)} of {rows} rows are bad, {share:.1%}, more than data.max_bad_share = "
            f"{source.max_bad_share:.1%}; most common: {kinds}; the first is row {bad[0].row}: {bad[0].reason}; "
            "mend them or raise the limit",
            600,
        )
    )
