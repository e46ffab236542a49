"""Files of a data source wherever they are: on disk, or behind an address that fsspec knows (`s3://`, `hf://`, …)."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

from cwdpo.errors import DataError, one_line

__all__ = ["copied", "expand", "file_name", "is_remote", "open_file", "read_range", "size_of"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_MOST_SHARDS = 100_000
_ROWS = (".jsonl", ".parquet", ".tar")

LARGEST = 1 << 30
"""Bytes of the largest image that is read from within another file."""


def is_remote(path: str | Path) -> bool:
    """Return whether a path is an address."""
    return _ADDRESS.match(str(path)) is not None


def file_name(path: str) -> str:
    """Return the last part of a path or address."""
    return path.rstrip("/").rpartition("/")[2]


def expand(path: str) -> list[str] | None:
    """Return the shards that a pattern means (`*`, `?`, `{000..099}`), sorted; None where it is no pattern.

    Raises:
        DataError: Nothing fits.
    """
    if not is_remote(path) and os.path.exists(path):  # noqa: PTH110 (a name that cannot be is not there)
        return None
    braced = _BRACES.search(path)
    if braced is None and not any(mark in path for mark in "*?"):
        return None
    if braced is not None:
        counts = [int(last) - int(first) + 1 for first, last in _BRACES.findall(path)]
        if min(counts) < 1 or math.prod(counts) > _MOST_SHARDS:
            raise DataError(f"{path}: braces must count upwards, to at most {_MOST_SHARDS:,} shards in all")
    found = sorted(_braces(path)) if braced is not None else _glob(path)
    if not found:
        raise DataError(f"{path}: no file fits this pattern")
    return found


def _braces(path: str) -> Iterator[str]:
    match = _BRACES.search(path)
    if match is None:
        yield path
        return
    for number in range(int(match[1]), int(match[2]) + 1):
        yield from _braces(f"{path[: match.start()]}{number:0{len(match[1])}}{path[match.end() :]}")


def _glob(path: str) -> list[str]:
    if not is_remote(path):
        found = glob.glob(path)  # noqa: PTH207 (as the user wrote it)
        return sorted(p for p in found if Path(p).suffix in _ROWS or not os.path.isdir(p))  # noqa: PTH112
    system, inner = _system(path)
    with _told(path):
        return sorted(system.unstrip_protocol(str(name)) for name in system.glob(inner))


def _system(path: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it.

    Raises:
        DataError: No such protocol, or a package for it is missing.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(path)
    except ImportError as error:
        raise DataError(f"{path}: {one_line(error, 160)}; pip install it, or copy the files to a disk") from error
    except ValueError as error:
        raise DataError(f"{path}: {one_line(error, 160)}") from error


@contextlib.contextmanager
def _told(path: str) -> Generator[None]:
    """Say in one line what cannot be read. Packages for file systems raise of every kind."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file or folder") from error
    except Exception as error:
        detail = one_line(error, 160) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({detail})") from error


@contextlib.contextmanager
def open_file(path: str) -> Generator[IO[bytes]]:
    """Open a file to read.

    Raises:
        DataError: It cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        with _told(path):
            if is_remote(path):
                system, inner = _system(path)
                handle: Any = stack.enter_context(system.open(inner, "rb"))
            else:
                require_regular(path)
                handle = stack.enter_context(Path(path).open("rb"))
        yield handle


def require_regular(path: str) -> None:
    """Raise unless a path is a file: pipes and devices are not opened.

    Raises:
        FileNotFoundError: There is none.
        OSError: It is something else, or cannot be looked at.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError("is a folder, pipe, device or socket, not a file")


def size_of(path: str) -> int:
    """Return the bytes of a file."""
    with _told(path):
        if not is_remote(path):
            return Path(path).stat().st_size
        system, inner = _system(path)
        return int(system.size(inner))


def read_range(path: str, offset: int, size: int) -> bytes:
    """Return bytes of a file.

    Raises:
        OSError: They are not there, or cannot be had.
    """
    if size > LARGEST:
        raise OSError(f"{size:,} bytes, more than the {LARGEST:,} that an image may have")
    if is_remote(path):
        system, inner = _system(path)
        try:
            content: bytes = system.cat_file(inner, start=offset, end=offset + size)
        except OSError:
            raise
        except Exception as error:  # packages for file systems raise of every kind
            raise OSError(one_line(error, 160) or type(error).__name__) from error
    else:
        require_regular(path)
        with Path(path).open("rb") as handle:
            there = max(0, os.fstat(handle.fileno()).st_size - offset)
            handle.seek(offset if there else 0)
            content = handle.read(min(size, there))
    if len(content) != size:
        raise OSError(f"{len(content)} bytes where {size} should be: the file has changed")
    return content


@contextlib.contextmanager
def copied(path: str, folder: Path) -> Generator[str]:
    """Yield the path of a copy of a remote table, or of the folder with its shards; gone when the block ends.

    Raises:
        DataError: It cannot be had.
    """
    shards = expand(path) or [path]
    folder.mkdir(parents=True, exist_ok=True)
    names = [file_name(shard) for shard in shards]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two shards have the same name")
    for shard, name in zip(shards, names, strict=True):
        system, inner = _system(shard)
        with _told(shard):
            if system.isdir(inner):
                raise DataError(f"{shard}: is a folder; give its files as a pattern, for instance {shard}/*.parquet")
            system.get_file(inner, str(folder / name))
    yield str(folder / names[0]) if len(shards) == 1 else str(folder / f"*{Path(names[0]).suffix}")
