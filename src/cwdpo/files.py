"""Files that are whole or absent: written to a temporary name, flushed, renamed.

Inside a folder that a command owns (`cwdpo.outputs.OwnedFolder`), every writer here first asks whether the file is the
command's own, and `remove` deletes nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cwdpo.errors import RunError, one_line

__all__ = [
    "OWNERS",
    "Owner",
    "append_jsonl",
    "atomic_directory",
    "claim",
    "file_digest",
    "read_json",
    "read_jsonl",
    "remove",
    "text_digest",
    "to_json",
    "whole_file",
    "write_bytes",
    "write_json",
    "write_jsonl",
    "write_lines",
    "write_text",
]


_HALF = re.compile("[\ud800-\udfff]")


class Owner(Protocol):
    """A folder that keeps a list of the files that its command wrote there."""

    folder: Path

    def claim(self, path: Path, *, grows: bool) -> None:
        """List a file that is about to be written; refuse one that is there and was not written by the command."""
        ...

    def wrote(self, path: Path, content: Path) -> None:
        """List the content that a file is about to have, as it stands in another."""
        ...

    def remove(self, path: Path) -> None:
        """Delete a file, or what a folder holds, as far as it is listed."""
        ...


OWNERS: list[Owner] = []
"""The folders that this process is at work in; the last one that holds a path owns it."""


def _owner(path: Path) -> Owner | None:
    where = path.absolute()
    return next((owner for owner in reversed(OWNERS) if where.is_relative_to(owner.folder)), None)


def claim(path: Path, *, grows: bool = True) -> None:
    """Say that a file is about to be written by other means than the functions here (SQLite, a library).

    Args:
        path: The file.
        grows: Whether any content that it comes to have is ours.

    Raises:
        RunError: It lies in a folder that a command owns, and is not the command's.
    """
    if (owner := _owner(path)) is not None:
        owner.claim(path, grows=grows)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there; in a folder that a command owns, only what the command wrote."""
    if (owner := _owner(path)) is not None:
        owner.remove(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Generator[None]:
    """Give an error of the system (a full disk) the file that it is about, where it names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """Yield a file to write to; a reader of `path` sees the old file or, once the block has ended well, the new one."""
    claim(path, grows=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _named(path):
        try:
            with temporary.open("wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            if (owner := _owner(path)) is not None:
                owner.wrote(path, temporary)
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


def to_json(value: Any, **settings: Any) -> str:
    """Return JSON as UTF-8 takes it: halves of surrogate pairs, as names of files have them, are escaped."""
    text = json.dumps(value, ensure_ascii=False, **settings)
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


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
    return RunError(f"{path}: is damaged ({one_line(why, 120)}); restore it from a copy, or delete this file")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all; rows are taken one at a time."""
    write_lines(path, (to_json(row) for row in rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines as UTF-8, whole or not at all; they are taken one at a time."""
    with whole_file(path) as handle:
        for line in lines:
            handle.write((line + "\n").encode("utf-8"))


def append_jsonl(path: Path, *rows: Any) -> None:
    """Append JSON values as lines, in one write, flushed to disk once."""
    claim(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path), path.open("a", encoding="utf-8") as handle:
        handle.write("".join(to_json(row) + "\n" for row in rows))
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
    """Yield a temporary folder beside `path` that becomes `path` when the block ends without an error.

    Raises:
        RunError: `path` holds a file that was not written here.
    """
    claim(path, grows=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)
    temporary.mkdir()
    try:
        with _named(path):
            yield temporary
            files = sorted(file for file in temporary.rglob("*") if file.is_file())
            for file in files:
                _sync(file)
            remove(path)
            if path.exists():
                raise RunError(f"{path}: holds files that were not written here; move them away")
            for file in files:
                if (owner := _owner(path)) is not None:
                    owner.wrote(path / file.relative_to(temporary), file)
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
