"""JSON, JSON lines and captions CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cwdpo.data.row_values import RowError
from cwdpo.data.tables.raw_row import RawRow
from cwdpo.errors import DataError, one_line

__all__ = ["caption_columns", "caption_rows", "is_there", "json_document", "json_rows", "jsonl_rows", "require_file"]

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
    """Raise unless `path` is a file with something in it that can be read.

    Raises:
        DataError: One line.
    """
    if not is_there(path):
        raise DataError(f"{path}: no such file or folder")
    try:
        with path.open("rb") as handle:
            if not handle.read(1):
                raise DataError(f"{path}: the file is empty")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def jsonl_rows(path: Path) -> Iterator[RawRow]:
    """Yield the lines of a JSON-lines file; blank lines are passed over but counted.

    Raises:
        DataError: Not such a file at all: binary, or no JSON in its first lines.
    """
    require_file(path)
    with path.open("rb") as handle:
        if b"\0" in handle.read(4096):
            raise DataError(f"{path}: not JSON lines but binary content (or UTF-16; it must be UTF-8)")
        handle.seek(0)
        lines = ((number, line) for number, line in enumerate(handle, 1) if line.strip(b" \t\r\n\xef\xbb\xbf"))
        head = [_jsonl_row(number, line, path) for number, line in islice(lines, _LINES_TO_SEE)]
        if not head:
            raise DataError(f"{path}: no rows, only blank lines")
        if all(row.error is not None for row in head):
            raise DataError(f"{path}: not JSON lines; row {head[0].number}: {head[0].error}")
        yield from head
        for number, line in lines:
            yield _jsonl_row(number, line, path)


def _jsonl_row(number: int, line: bytes, path: Path) -> RawRow:
    try:
        value = json.loads(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        text = line.decode("utf-8", "backslashreplace")
        return RawRow(number, text, _not_json(error), path.name)
    return RawRow(number, value, file=path.name)


def _not_json(error: Exception) -> RowError:
    if isinstance(error, UnicodeDecodeError):
        return RowError("not UTF-8", f"byte {error.start} of the line")
    if isinstance(error, json.JSONDecodeError):
        return RowError("not JSON", f"{error.msg} at column {error.colno}")
    return RowError("not JSON", one_line(error, 100))


def json_document(path: Path) -> Any:
    """Return a whole JSON file.

    Raises:
        DataError: Missing, empty, not UTF-8 or not JSON; the line and column where it breaks.
    """
    require_file(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}), so not JSON") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error.msg} at line {error.lineno} column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({one_line(error, 100)})") from error


def json_rows(path: Path) -> Iterator[RawRow]:
    """Yield the items of a JSON list; a `.json` file that holds JSON lines is read as such.

    Raises:
        DataError: Neither.
    """
    require_file(path)
    try:
        document = json_document(path)
    except DataError:
        if not _first_line_is_an_object(path):
            raise
        yield from jsonl_rows(path)
        return
    if isinstance(document, dict):
        document = document.get("data", [document])
    if not isinstance(document, list):
        raise DataError(f"{path}: must hold a list of rows")
    if not document:
        raise DataError(f"{path}: no rows, the list is empty")
    for number, value in enumerate(document, 1):
        yield RawRow(number, value, file=path.name)


def _first_line_is_an_object(path: Path) -> bool:
    with path.open("rb") as handle:
        try:
            return isinstance(json.loads(handle.readline().decode("utf-8-sig")), dict)
        except ValueError:
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
    known = {name.strip().lower(): name for name in header}
    image = next((known[name] for name in _IMAGE_HEADERS if name in known), None)
    caption = next((known[name] for name in _CAPTION_HEADERS if name in known), None)
    if image is None or caption is None:
        raise DataError(
            f"{path}: no captions CSV; its header {one_line(first, 80)!r} needs an image column "
            f"({', '.join(_IMAGE_HEADERS[:3])}, …) and a caption column ({', '.join(_CAPTION_HEADERS[:3])}, …)"
        )
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
            reader = csv.DictReader(handle, delimiter=delimiter)
            for row in reader:
                error = _csv_problem(row, image, caption, len(reader.fieldnames or ()))
                if error is not None:
                    values = {str(key): value for key, value in row.items()}
                    bad.append(RawRow(reader.line_num, values, error, path.name))
                    continue
                gathered.setdefault(row[image].strip(), (reader.line_num, []))[1].append(row[caption])
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({one_line(error, 100)})") from error
    if not gathered and not bad:
        raise DataError(f"{path}: no rows below the header")
    rows = [RawRow(n, {"image": i, "captions": texts}, file=path.name) for i, (n, texts) in gathered.items()]
    yield from sorted([*rows, *bad], key=lambda row: row.number)


def _csv_problem(row: dict[Any, Any], image: str, caption: str, width: int) -> RowError | None:
    if None in row:
        count = width + len(row[None])
        return RowError("wrong number of fields", f"{count} where the header has {width}; quote captions with commas")
    if row[caption] is None or row[image] is None:
        return RowError("wrong number of fields", f"fewer than the {width} of the header")
    if not row[image].strip():
        return RowError("missing column", f"'{image}' is empty")
    return None
