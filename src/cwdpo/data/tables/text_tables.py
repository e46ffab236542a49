"""JSON, JSON lines and captions CSV."""

from __future__ import annotations

import csv
import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import IO, Any

from cwdpo.data.row_values import RowError
from cwdpo.data.tables.raw_row import RawRow
from cwdpo.errors import DataError, one_line

__all__ = [
    "ROW_LIMIT",
    "caption_columns",
    "caption_rows",
    "is_there",
    "json_document",
    "json_rows",
    "jsonl_rows",
    "parse_json",
    "require_file",
]

ROW_LIMIT = 64 << 20
"""Bytes of the longest line of JSON that is read, where `data.row_limit` is not set."""

_IMAGE_HEADERS = (
    "image",
    "image_path",
    "image_file",
    "image_name",
    "img",
    "img_path",
    "file_name",
    "filename",
    "filepath",
    "file",
    "path",
)
_CAPTION_HEADERS = ("caption", "captions", "text", "description", "sentence", "raw", "comment")
_DELIMITERS = ",\t;|"
_LINES_TO_SEE = 20
_LINES_OF_A_CELL = 1000
"""Lines that a record of a CSV may have: a quote that is closed later than that is not meant to be."""

_NUMBERED = re.compile(r"\S*\d\S*")
"""Names of images without an ending, as data sets number them."""
_IMAGE_ENDINGS = frozenset((".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def is_there(path: Path) -> bool:
    """Return whether a path is there.

    Raises:
        DataError: It may not be looked at, or is no possible path.
    """
    try:
        return path.exists()
    except OSError as error:
        raise DataError(one_line(f"{path}: cannot be read ({error.strerror})", 600)) from error


def require_file(path: Path) -> None:
    """Raise unless `path` is a file with something in it that can be read. Pipes and devices are not opened.

    Raises:
        DataError: One line.
    """
    if not is_there(path):
        raise DataError(f"{path}: no such file or folder")
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, device or socket"
            raise DataError(f"{path}: is {kind}, not a file; give a file with rows")
        if facts.st_size == 0:
            raise DataError(f"{path}: the file is empty")
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        RowError: An object names a key twice.
        ValueError: It is not JSON.
        RecursionError: It is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _key_twice(pairs)
    return value


def _key_twice(pairs: Sequence[tuple[str, Any]]) -> RowError:
    names = [name for name, _ in pairs]
    return RowError("key twice", f"{next(name for name in names if names.count(name) > 1)!r}")


def jsonl_rows(path: Path, limit: int = ROW_LIMIT) -> Iterator[RawRow]:
    """Yield the lines of a JSON-lines file; blank lines are passed over but counted.

    Args:
        path: The file.
        limit: Bytes of the longest line; longer ones are bad rows, and never held.

    Raises:
        DataError: Not such a file at all: binary, or no JSON in its first lines.
    """
    require_file(path)
    with path.open("rb") as handle:
        if b"\0" in handle.read(4096):
            raise DataError(f"{path}: not JSON lines but binary content (or UTF-16; it must be UTF-8)")
        handle.seek(0)
        rows = (_jsonl_row(*line, path) for line in _lines(handle, limit))
        head = list(islice(rows, _LINES_TO_SEE))
        if not head:
            raise DataError(f"{path}: no rows, only blank lines")
        if all(row.error is not None and row.error.kind in _NO_JSON for row in head):
            raise DataError(f"{path}: not JSON lines; row {head[0].number}: {head[0].error}")
        yield from head
        yield from rows


def _lines(handle: IO[bytes], limit: int) -> Iterator[tuple[int, bytes, RowError | None]]:
    """Yield number, content and error of each line that is not blank; of one that is too long, its beginning."""
    for number, line in enumerate(iter(partial(handle.readline, limit + 1), b""), 1):
        if len(line) <= limit:
            if line.strip(b" \t\r\n\xef\xbb\xbf"):
                yield number, line, None
            continue
        begins = line[:1000]
        while line and not line.endswith(b"\n"):
            line = handle.readline(1 << 20)
        yield number, begins, RowError("row too long", f"more than {limit:,} bytes; raise data.row_limit")


def _jsonl_row(number: int, line: bytes, error: RowError | None, path: Path) -> RawRow:
    try:
        if error is None:
            return RawRow(number, parse_json(line.rstrip(b"\r\n").decode(_encoding(number))), file=path.name)
    except RowError as found:
        error = found
    except (ValueError, RecursionError) as found:
        error = _not_json(found)
    return RawRow(number, line.decode("utf-8", "backslashreplace"), error, path.name)


def _encoding(number: int) -> str:
    return "utf-8-sig" if number == 1 else "utf-8"


_NO_JSON = ("not UTF-8", "not JSON")


def _not_json(error: Exception) -> RowError:
    if isinstance(error, UnicodeDecodeError):
        return RowError("not UTF-8", f"byte {error.start} of the line")
    if isinstance(error, json.JSONDecodeError):
        return RowError("not JSON", f"{error.msg} at column {error.colno}")
    return RowError("not JSON", one_line(error, 100))


def json_document(path: Path, make: Callable[[Sequence[tuple[str, Any]]], Any] = _object) -> Any:
    """Return a whole JSON file.

    Args:
        path: The file.
        make: What an object becomes, of its keys and values.

    Raises:
        DataError: Missing, empty, not UTF-8 or not JSON; the line and column where it breaks.
    """
    require_file(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=make)
    except RowError as error:
        raise DataError(f"{path}: {error}, in one object; keep one of the two") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}), so not JSON") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error.msg} at line {error.lineno} column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({one_line(error, 100)})") from error


def json_rows(path: Path, limit: int = ROW_LIMIT) -> Iterator[RawRow]:
    """Yield the items of a JSON list; a `.json` file that holds JSON lines is read as such.

    Args:
        path: The file.
        limit: As for `jsonl_rows`.

    Raises:
        DataError: Neither.
    """
    twice: list[RowError] = []

    def make(pairs: Sequence[tuple[str, Any]]) -> Any:
        value = dict(pairs)
        if len(value) < len(pairs):
            twice.append(_key_twice(pairs))
            return twice[-1]
        return value

    try:
        document = json_document(path, make)
    except DataError:
        if not _first_line_is_an_object(path, limit):
            raise
        yield from jsonl_rows(path, limit)
        return
    if isinstance(document, dict):
        document = document.get("data", [document])
    if not isinstance(document, list):
        raise DataError(f"{path}: {twice[0] if twice else 'must hold a list of rows'}")
    if not document:
        raise DataError(f"{path}: no rows, the list is empty")
    for number, value in enumerate(document, 1):
        yield RawRow(number, value, _error_in(value) if twice else None, path.name)


def _error_in(value: Any) -> RowError | None:
    """Return the error that stands in a value in place of an object, if there is one."""
    if isinstance(value, RowError):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((error for part in parts if (error := _error_in(part)) is not None), None)


def _first_line_is_an_object(path: Path, limit: int) -> bool:
    require_file(path)
    with path.open("rb") as handle:
        try:
            return isinstance(json.loads(handle.readline(limit).decode("utf-8-sig")), dict)
        except (ValueError, RecursionError):
            return False


def caption_columns(path: Path) -> tuple[str, str, str]:
    """Return the delimiter and the names of the image and caption columns of a CSV.

    Raises:
        DataError: No such columns in its header.
    """
    require_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            first = handle.readline(65_536)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text, so not a captions CSV") from error
    delimiter = max(_DELIMITERS, key=first.count)
    header = next(csv.reader([first.rstrip("\r\n")], delimiter=delimiter), [])
    names = [name.strip().lower() for name in header]
    known = dict(zip(names, header, strict=True))
    image = next((known[name] for name in _IMAGE_HEADERS if name in known), None)
    caption = next((known[name] for name in _CAPTION_HEADERS if name in known), None)
    if image is None or caption is None:
        raise DataError(
            f"{path}: no captions CSV; its header {one_line(first, 80)!r} needs an image column "
            f"({', '.join(_IMAGE_HEADERS[:3])}, …) and a caption column ({', '.join(_CAPTION_HEADERS[:3])}, …)"
        )
    if twice := {name for name in (image, caption) if names.count(name.strip().lower()) > 1}:
        raise DataError(f"{path}: its header has {', '.join(sorted(twice))} twice; give each column a name of its own")
    return delimiter, image, caption


def caption_rows(path: Path) -> Iterator[RawRow]:
    """Yield one row an image, `{"image", "captions"}`, in the order of their first line, and each line that is bad.

    Raises:
        DataError: Not a captions CSV.
    """
    delimiter, image, caption = caption_columns(path)
    gathered: dict[str, tuple[int, list[str]]] = {}
    bad: list[RawRow] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            lines = handle.readlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from error
    header = next(csv.reader(lines[:1], delimiter=delimiter))
    for number, cells in _records(lines, delimiter, header.index(image)):
        row, error = (cells, None) if isinstance(cells, list) else ([lines[number - 1]], cells)
        values = dict(zip(header, row, strict=False))
        error = error or _csv_problem(row, values, image, caption, len(header))
        if error is not None:
            bad.append(RawRow(number, values, error, path.name))
        else:
            gathered.setdefault(values[image].strip(), (number, []))[1].append(values[caption])
    if not gathered and not bad:
        raise DataError(f"{path}: no rows below the header")
    rows = [RawRow(n, {"image": i, "captions": texts}, file=path.name) for i, (n, texts) in gathered.items()]
    yield from sorted([*rows, *bad], key=lambda row: row.number)


def _records(lines: Sequence[str], delimiter: str, image: int) -> Iterator[tuple[int, list[str] | RowError]]:
    """Yield the first line of each record below the header, and its cells or what is wrong with it.

    Where a quote is not closed, the record ends with its first line: no other row vanishes in it.
    """
    place = 1
    while place < len(lines):
        reader = csv.reader(lines[place : place + _LINES_OF_A_CELL], delimiter=delimiter, strict=True)
        try:
            cells, taken = next(reader), reader.line_num
            if taken > 1 and _swallows(cells, lines[place + 1 : place + taken], delimiter, image):
                raise csv.Error("the quote is closed in a later row")
        except csv.Error as error:
            kind = "row too long" if "field limit" in str(error) else "unbalanced quote"
            cells, taken = RowError(kind, f"from this line on ({one_line(error, 100)}); close it or take it out"), 1
        if cells:
            yield place + 1, cells
        place += taken


def _swallows(cells: Sequence[str], lines: Sequence[str], delimiter: str, image: int) -> bool:
    """Return whether a cell with line ends holds lines that are rows: as many cells, and an image among them."""
    for line in lines:
        row = next(csv.reader([line], delimiter=delimiter), [])
        cell = row[image] if len(row) == len(cells) else ""
        ending = PurePath(cell).suffix.lower()
        if ending and (ending in _IMAGE_ENDINGS or ending == PurePath(cells[image]).suffix.lower()):
            return True
        if _NUMBERED.fullmatch(cell) and _NUMBERED.fullmatch(cells[image]):
            return True
    return False


def _csv_problem(
    row: Sequence[str], values: Mapping[str, str], image: str, caption: str, width: int
) -> RowError | None:
    if len(row) > width:
        return RowError(
            "wrong number of fields", f"{len(row)} where the header has {width}; quote captions with commas"
        )
    if image not in values or caption not in values:
        return RowError("wrong number of fields", f"fewer than the {width} of the header")
    if not values[image].strip():
        return RowError("missing column", f"'{image}' is empty")
    return None
