"""Files that are whole or absent: written to a temporary name, flushed, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cwdpo.errors import RunError, one_line

__all__ = [
    "append_jsonl",
    "atomic_directory",
    "file_digest",
    "read_json",
    "read_jsonl",
    "text_digest",
    "whole_file",
    "write_bytes",
    "write_json",
    "write_jsonl",
    "write_lines",
    "write_text",
]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """Yield a file to write to; a reader of `path` sees the old file or, once the block has ended well, the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    with whole_file(path) as handle:
        handle.write(content)


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


def read_json(path: Path, **shape: type) -> Any:
    """Read a JSON file that we wrote.

    Args:
        path: The file.
        **shape: Where given, it must be an object that has these keys, with values of these types.

    Raises:
        RunError: It is not JSON any more, or has not this shape.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if shape and not (isinstance(value, dict) and all(isinstance(value.get(k), kind) for k, kind in shape.items())):
        raise _damaged(path, f"it must be an object with {', '.join(shape)}")
    return value


def _damaged(path: Path, why: object) -> RunError:
    return RunError(f"{path}: is damaged ({one_line(why, 120)}); put it back, or delete the folder that it is in")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all; rows are taken one at a time."""
    write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines as UTF-8, whole or not at all; they are taken one at a time."""
    with whole_file(path) as handle:
        for line in lines:
            handle.write((line + "\n").encode("utf-8"))


def append_jsonl(path: Path, *rows: Any) -> None:
    """Append JSON values as lines, in one write, flushed to disk once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        handle.flush()
        os.fsync(handle.fileno())


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the objects of a JSON-lines file that we wrote; a last line cut short by a kill is left out.

    Raises:
        RunError: A line is not a JSON object.
    """
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                return
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _damaged(path, f"line {number}: {error}") from None
            if not isinstance(value, dict):
                raise _damaged(path, f"line {number} is no object")
            yield value


@contextlib.contextmanager
def atomic_directory(path: Path) -> Generator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
            _sync(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def text_digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of the parts in order, each with its length before it, in hex."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.hexdigest()
