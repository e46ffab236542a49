"""Image tars (WebDataset): samples in sequence, their images left in the tar and read at their place."""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any

from cwdpo.data.row_values import MOST_IMAGES, RowError
from cwdpo.data.tables.raw_row import RawRow
from cwdpo.data.tables.remote_files import file_name, open_file, read_range, size_of
from cwdpo.data.tables.text_tables import parse_json
from cwdpo.errors import DataError, one_line

__all__ = ["TarMember", "tar_rows"]

_IMAGES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TEXTS = (".txt", ".caption", ".text")
_LONGEST_TEXT = 16 << 20
"""Bytes of the largest JSON or text member that is read; also of the headers of a member, and the texts of a sample."""


@dataclass(frozen=True)
class TarMember:
    """An image in a tar; see `cwdpo.data.schema.StoredBytes`.

    Attributes:
        tar: Path or address of the tar.
        member: Name in it. A label: nothing is ever written under it.
        offset: Where its bytes begin.
        size: How many there are.
    """

    tar: str
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Tar and member."""
        return f"{self.tar}::{self.member}"

    def read(self) -> bytes:
        """Return the bytes of the image file."""
        return read_range(self.tar, self.offset, self.size)

    def to_json(self) -> dict[str, Any]:
        """Return what stands for the image in a row; `TarMember(**row)` reads it back."""
        return {"tar": self.tar, "member": self.member, "offset": self.offset, "size": self.size}


@dataclass(frozen=True)
class _Part:
    """A member of a sample: its file ending, where its bytes are, and the bytes where it is text."""

    ending: str
    image: TarMember | None = None
    is_file: bool = True
    text: bytes = field(default=b"", repr=False)


def tar_rows(paths: Sequence[str]) -> Generator[RawRow]:
    """Yield the samples of tars: members in sequence whose names are equal up to the first dot.

    A sample's `json` gives the columns of its row, its images come under `images` in their order; where there is only a
    text (`txt`), or the JSON is only a caption, the row is `{"image", "captions"}`. Rows without an `id` get one from
    tar and key.

    Raises:
        DataError: A file is no plain tar, is cut short, or has no samples.
    """
    for path in paths:
        number = 0
        stem = PurePosixPath(file_name(path)).name.removesuffix(".tar")
        for number, (key, parts) in enumerate(groupby(_members(path), key=lambda pair: pair[0]), 1):
            yield _row(number, f"{stem}/{key}", _sample(path, key, parts), file_name(path))
        if number == 0:
            raise DataError(f"{path}: no samples in this tar")


def _sample(path: str, key: str, members: Iterable[tuple[str, _Part]]) -> list[_Part]:
    """Return the parts of a sample, which are not more than memory holds."""
    parts: list[_Part] = []
    images = size = 0
    for _, part in members:
        images, size = images + (part.image is not None), size + len(part.text)
        if images > MOST_IMAGES or size > _LONGEST_TEXT:
            raise DataError(
                f"{path}: sample {key!r} has more than {MOST_IMAGES:,} images, or more than {_LONGEST_TEXT:,} bytes "
                "of text; give samples other names, or split it"
            )
        parts.append(part)
    return parts


class _Headers:
    """What `tarfile` reads of a tar: headers and nothing else, so not much at once."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle, self.tell = handle, handle.tell
        self.left = _LONGEST_TEXT

    def seek(self, offset: int) -> int:
        if offset < 0:
            raise tarfile.ReadError("a size below 0")
        return self._handle.seek(offset)

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"headers of more than {_LONGEST_TEXT:,} bytes, or of a size below 0")
        return self._handle.read(size)


def _members(path: str) -> Iterator[tuple[str, _Part]]:
    """Yield key and part of every member that belongs to a sample."""
    last, whole = "its beginning", size_of(path)
    with open_file(path) as handle:
        headers: Any = _Headers(handle)
        try:
            tar: Any = tarfile.open(fileobj=headers, mode="r:")  # noqa: SIM115 (holds nothing but the handle)
            while (info := tar.next()) is not None:
                tar.members = []  # or it keeps every one
                headers.left = _LONGEST_TEXT
                if tar.offset <= info.offset:
                    raise tarfile.ReadError(f"{info.name!r} has a size below 0")
                if not info.isreg() or info.issparse():
                    if not info.isdir() and _suffix(info.name) in (*_IMAGES, *_TEXTS, ".json"):
                        yield _key(info.name), _Part(_suffix(info.name), is_file=False)
                    continue
                if info.size < 0 or info.offset_data + info.size > whole:
                    raise tarfile.ReadError(f"{info.name!r} has {info.size:,} bytes, the whole tar {whole:,}")
                last = repr(info.name)
                part = _part(path, handle, info)
                if part is not None:
                    yield _key(info.name), part
            handle.seek(tar.offset)  # `next` ends at whatever is no header: only zeros, or nothing, may follow
            if handle.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("no header where one should be")
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
            raise _damaged(path, last, error) from error


def _damaged(path: str, last: str, error: Exception) -> DataError:
    if last == "its beginning":
        with open_file(path) as handle:
            packed = handle.read(6)[:2] in (b"\x1f\x8b", b"BZ") or size_of(path) == 0
        why = "compressed or empty; only plain tars can be read at random, so unpack it" if packed else one_line(error)
        return DataError(f"{path}: not a tar that can be read ({why})")
    return DataError(f"{path}: the tar is cut short or damaged after {last} ({one_line(error, 80)}); copy it again")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}" if folder else base.partition(".")[0]


def _part(path: str, handle: IO[bytes], info: tarfile.TarInfo) -> _Part | None:
    ending = _suffix(info.name)
    if ending in _IMAGES:
        return _Part(ending, TarMember(path, info.name, info.offset_data, info.size))
    if ending != ".json" and ending not in _TEXTS:
        return None
    if info.size > _LONGEST_TEXT:
        raise tarfile.ReadError(f"{info.name} has {info.size:,} bytes, more than a text may have")
    handle.seek(info.offset_data)
    text = handle.read(info.size)
    if len(text) < info.size:
        raise tarfile.ReadError("unexpected end of data")
    return _Part(ending, text=text)


def _row(number: int, name: str, parts: Sequence[_Part], file: str) -> RawRow:
    images = [part.image for part in parts if part.image is not None]
    if odd := next((part.ending for part in parts if not part.is_file), None):
        return RawRow(number, name, RowError("no plain file", f"{name}{odd} is a link, sparse or a device"), file)
    if sum(part.ending == ".json" for part in parts) > 1:
        return RawRow(number, name, RowError("two rows", f"{name} has several JSON members"), file)
    try:
        document = next((parse_json(p.text) for p in parts if p.ending == ".json"), {})
        text = next((p.text.decode("utf-8") for p in parts if p.ending in _TEXTS), None)
    except RowError as error:
        return RawRow(number, name, error, file)
    except (ValueError, RecursionError) as error:
        return RawRow(number, name, RowError("not JSON", f"of {name}: {one_line(error, 100)}"), file)
    if not isinstance(document, dict):
        return RawRow(number, name, RowError("wrong type", f"the JSON of {name} must be an object"), file)
    if not images and (document.get("images") or document.get("image")):
        return RawRow(number, name, RowError("image missing", f"{name} names images, and has none in the tar"), file)
    captions = _captions(document, text)
    if captions is not None and images:
        return RawRow(number, {"image": images[0], "captions": captions, "id": document.get("id", name)}, file=file)
    return RawRow(number, {**document, "images": images, "id": document.get("id", name)}, file=file)


def _captions(document: dict[str, Any], text: str | None) -> list[Any] | None:
    """Return the captions of a sample that is no row of another format."""
    if {"prompt", "chosen", "messages", "conversations", "responses", "instruction"} & set(document):
        return None
    found = next((document[k] for k in ("captions", "caption", "text") if document.get(k) is not None), text)
    return found if isinstance(found, list) else None if found is None else [found]
