"""A data source read row by row: good rows into a scratch file, bad ones set aside with their reason."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from cwdpo.data.images import ImageError, ImageLimits, image_problem, missing_file
from cwdpo.data.open_source import RowReader, open_source, shards_of
from cwdpo.data.row_checks import REQUIREMENTS, TEXT_LIMIT, check_group
from cwdpo.data.row_context import DEFAULT_PROMPT, Reading, RowContext
from cwdpo.data.row_store import Scratch
from cwdpo.data.row_values import RowError, excerpt, kind_of
from cwdpo.data.schema import ImageRef, PromptGroup
from cwdpo.data.source_parts import Part, Share
from cwdpo.data.splits import content_digest
from cwdpo.data.tables.image_tar import TarMember
from cwdpo.data.tables.raw_row import RawRow, RawTable
from cwdpo.data.tables.remote_files import copied, file_name, is_remote
from cwdpo.data.tables.text_tables import ROW_LIMIT
from cwdpo.data.write_groups import as_file
from cwdpo.errors import DataError, one_line
from cwdpo.files import claim, write_jsonl

__all__ = ["BadRow", "DataSource", "LoadedData", "SourceRows", "load_groups", "read_source", "write_rejected"]

Progress = Callable[[str, int, int | None], None]
"""Is told of `rows` read (their number is not known), of `images` looked at, and of rows that `fits` looked at."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """What to read and how strictly.

    Attributes:
        path: File or folder; `dataset_info.json:name` for LLaMA-Factory; the id of a data set on the hub.
        format: One of `cwdpo.data.FORMATS`, `my_rows.py:read`, or `auto`.
        sources: Several sources in place of `path`, which then only names them together.
        columns: What columns of the rows are called: `{"prompt": "question"}` reads `question` as the prompt.
        pairs: What rated answers become, `best`, `adjacent` or `all`; see `cwdpo.data.row_context.Reading`.
        pair_gap: Least difference of the ratings of a pair.
        pair_unpaired: Whether rows are answers marked good or bad (KTO), to be grouped by prompt.
        private_addresses: Whether images are fetched from private networks and this machine.
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
        text_limit: Most characters of a row's prompt and answers together.
        row_limit: Most bytes of a line of JSON.
    """

    path: str | Path
    format: str = "auto"
    sources: tuple[Share, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    pairs: Literal["best", "adjacent", "all"] = "best"
    pair_gap: float = 0.0
    pair_unpaired: bool = False
    private_addresses: bool = False
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
    text_limit: int = TEXT_LIMIT
    row_limit: int = ROW_LIMIT

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
    """Read a data source into memory; images are never held.

    Args:
        source: What to read and how strictly.
        progress: Called with the images checked so far and their number.

    Raises:
        DataError: As `read_source`.
    """

    def told(what: str, done: int, total: int | None) -> None:
        if progress is not None and total is not None:
            progress(done, total)

    with read_source(source, progress=told) as rows:
        return LoadedData(tuple(rows), tuple(rows.bad_rows()), rows.format, rows.count)


def write_rejected(path: Path, bad_rows: Iterable[BadRow]) -> None:
    """Write `rejected_rows.jsonl`: file, row, reason and the beginning of each row set aside; whole or not at all."""
    write_jsonl(path, (row.to_json() for row in bad_rows))


@contextlib.contextmanager
def read_source(
    source: DataSource,
    *,
    progress: Progress | None = None,
    contents: bool = False,
    folder: Path | None = None,
    scratch: Path | None = None,
) -> Generator[SourceRows]:
    """Read a data source and yield its rows, which lie in a scratch file while the block lasts.

    Rows are read first, then images looked at: a bad row of text is found in seconds. Neither rows nor images are
    held: what is in memory does not grow with them.

    Args:
        source: What to read and how strictly.
        progress: Who is told.
        contents: Whether images are told apart by their content, so that the rows can be shared out.
        folder: Where images that are no files are written, named by content; None: they stay where they are.
        scratch: Folder for the scratch file; None: the system's for temporary files.

    Raises:
        DataError: One line: the file cannot be read; a row is bad and `on_bad_row` is `stop`; or too many are.
    """
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix=".rows.", suffix=".tmp")))
        claim(place.with_name(place.name.removeprefix(".").removesuffix(".tmp")))  # a kill leaves it to the next call
        cache: Path | None = None
        for share in source.sources:
            if is_remote(share.path) and not share.path.endswith(".tar"):
                raise DataError(f"data.sources: {share.path}: tables of a mixture must be files; download it first")
        if not source.sources and is_remote(source.path) and not str(source.path).endswith(".tar"):
            source = replace(source, path=stack.enter_context(copied(str(source.path), place / "copies")))
            cache = place / "arrow"
        store = Scratch(place / "rows.sqlite")
        try:
            rows = SourceRows(source, store, cache)
            rows.read(progress or _untold)
            if source.need_images:
                rows.look_at_images(progress or _untold, contents=contents, folder=folder)
            rows.refuse_too_many()
            yield rows
        except sqlite3.OperationalError as error:
            full = f"{place}: rows cannot be kept there ({one_line(error, 100)})"
            raise DataError(f"{full}; make room, and run the same command again") from error
        finally:
            store.close()


class SourceRows:
    """The rows of a source, as far as they are good.

    Attributes:
        format: The format that was read.
        count: How many rows were read, good and bad.
    """

    def __init__(self, source: DataSource, store: Scratch, cache: Path | None = None) -> None:
        self.store = store
        self.count = 0
        self._source = source
        names = ("prompt", "captions", "seed", "pairs", "pair_gap", "private_addresses")
        reading = Reading(**{name: getattr(source, name) for name in names})
        shares = source.sources or (Share(path=str(source.path)),)
        self._parts = [
            self._part(share, reading, f"{i}/" if source.sources else "", cache) for i, share in enumerate(shares, 1)
        ]
        self.format = ", ".join(dict.fromkeys(part.format for part in self._parts))

    def _part(self, share: Share, reading: Reading, prefix: str, cache: Path | None) -> Part:
        source = self._source
        options = (source.format, source.split, cache, source.row_limit, source.columns, source.pair_unpaired)
        again: Callable[[], tuple[str, RawTable, RowReader]] = partial(open_source, share.path, *options)
        name, table, reader = again()
        root = table.root if source.image_root is None else _folder(source.image_root)
        several = len(shards_of(share.path) or ()) > 1
        stem = "" if several else file_name(share.path).partition(":")[0].partition(".")[0] or "row"
        context = partial(RowContext, root=root, reading=reading)
        return Part(name, reader, context, stem, prefix, share, source.seed, [table], again)

    def _rows(self) -> Iterator[tuple[Part, RawRow, int]]:
        """Yield the rows of all parts, each with its part and the number of its copy."""
        return ((part, raw, copy) for part in self._parts for raw, copy in part.rows())

    def __iter__(self) -> Iterator[PromptGroup]:
        """Yield the groups in the order of the source."""
        return iter(self.store)

    def __len__(self) -> int:
        return len(self.store)

    def bad_rows(self) -> Iterator[BadRow]:
        """Yield what was set aside, in the order of the source."""
        return (BadRow(*fields) for fields in self.store.bad_rows())

    def read(self, progress: Progress) -> None:
        """Read the text of all rows."""
        for part, raw, copy in islice(self._rows(), self._source.limit):
            self.count += 1
            try:
                self._add(part, raw, copy)
            except RowError as error:
                self._set_aside(self.count, raw, error)
            if self.count % 1000 == 0:
                progress("rows", self.count, None)

    def _add(self, part: Part, raw: RawRow, copy: int) -> None:
        if raw.error is not None:
            raise raw.error
        if not isinstance(raw.value, Mapping):
            raise RowError("wrong type", f"a row must be an object, not {kind_of(raw.value)}")
        stem = part.stem or Path(raw.file).stem
        place: dict[str, Any] = {"file": raw.file, "number": raw.number, "table": raw.table, "row": raw.value}
        groups = part.reader(raw.value, part.context(**place, stem=stem))
        if part.prefix:
            groups = [replace(group, id=part.name(group.id, copy)) for group in groups]
        for group in groups:
            check_group(group, self._source.require, self._source.text_limit)
            known = self.store.number_of(group.id)
            if known is not None:
                raise RowError("duplicate id", f"{group.id!r} is also the id of row {known}")
        for group in groups:
            self.store.add(self.count, raw.number, group, raw.table, raw.file)

    def look_at_images(self, progress: Progress, *, contents: bool, folder: Path | None) -> None:
        """Look at every image once, in threads; rows with one that cannot be used are bad."""
        total, done, bad = self.store.images(), 0, 0
        workers = self._source.workers or min(8, os.cpu_count() or 1)
        look = partial(_look, source=self._source, contents=contents, folder=folder)
        with ThreadPoolExecutor(workers) as pool:
            for part in self.store.batches(32 * workers):
                known: list[tuple[int, str, str | None]] = []
                numbers, refs = zip(*part, strict=True)
                for number, (problem, digest, path) in zip(numbers, pool.map(look, refs), strict=True):
                    if problem is not None:
                        self.store.note_problem(number, problem.kind, problem.detail)
                        bad += 1
                    elif digest is not None:
                        known.append((number, digest, path))
                    done += 1
                    progress("images", done, total)
                if bad and self._source.on_bad_row == "stop":
                    break
                self.store.note_images(known)
        if bad:
            self._set_broken_aside()

    def fit(self, problem: Callable[[PromptGroup], RowError | None], progress: Progress) -> None:
        """Set aside the rows that cannot be used for another reason than text and images.

        Args:
            problem: Returns that reason, or None.
            progress: Who is told of `fits`, rows looked at.

        Raises:
            DataError: There is one, and `on_bad_row` is `stop`; or there are too many.
        """
        total, bad = len(self), 0
        for done, (row, group) in enumerate(self.store.by_row(), 1):
            if (error := problem(group)) is not None:
                self.store.note_unfit(row, error.kind, error.detail)
                bad += 1
                if self._source.on_bad_row == "stop":
                    break
            progress("fits", done, total)
        if bad:
            self._set_broken_aside()
            self.refuse_too_many()

    def _set_broken_aside(self) -> None:
        """Set rows aside that cannot be used after all. The source is read again for what stands in them."""
        wanted = self.store.broken_rows()
        row, problem = next(wanted)
        for number, (_, raw, _) in enumerate(self._rows(), 1):
            if number == row:
                self._set_aside(row, raw, RowError(*problem))
                row, problem = next(wanted, (0, ("", "")))
        self.store.drop_broken()

    def _set_aside(self, row: int, raw: RawRow, error: RowError) -> None:
        if self._source.on_bad_row == "stop":
            raise DataError(
                f"{raw.file} row {raw.number}: {error}; fix the row or set data.on_bad_row: skip"
            ) from error
        fields = (raw.file, raw.number, error.kind, excerpt(str(error), 400), excerpt(raw.value))
        self.store.set_aside(row, fields)

    def refuse_too_many(self) -> None:
        """Raise where more rows are bad than may be.

        Raises:
            DataError: One line with the share and the most common reasons.
        """
        source, (bad, kinds) = self._source, self.store.bad_kinds()
        if self.count == 0:
            raise DataError(f"{source.path}: no rows")
        share = bad / self.count
        if share <= source.max_bad_share and bad < self.count:
            return
        common, first = ", ".join(f"{kind} ({count})" for kind, count in kinds[:3]), next(self.bad_rows())
        raise DataError(
            one_line(
                f"{source.path}: {bad} of {self.count} rows are bad, {share:.1%}, more than data.max_bad_share = "
                f"{source.max_bad_share:.1%}; most common: {common}; the first is row {first.row}: {first.reason}; "
                "fix them or raise the limit",
                600,
            )
        )


def _look(
    ref: ImageRef, source: DataSource, contents: bool, folder: Path | None
) -> tuple[ImageError | None, str | None, str | None]:
    """Return why an image cannot be used; where it can, its digest and the file that it was written to."""
    problem = image_problem(ref, source.limits) if source.check_images else missing_file(ref)
    if problem is not None or not contents:
        return problem, None, None
    written = as_file(ref, folder) if folder is not None and not isinstance(ref.stored, TarMember) else ref
    return None, content_digest(ref), written.path if written is not ref else None


def _folder(path: str | Path) -> Path:
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise DataError(f"data.image_root = {str(path)!r}: no such folder")
    return folder


def _untold(what: str, done: int, total: int | None) -> None:
    """Tell nobody."""
