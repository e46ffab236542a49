"""What a reader knows beside the row: which row of which file, and where its images are."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from cwdpo.data.messages import Message, picture_values, place_images, refuse_untrained, two_pictures
from cwdpo.data.row_values import RowError, as_text, kind_of
from cwdpo.data.schema import ImageRef, PromptGroup, Response
from cwdpo.data.tables.image_tar import TarMember
from cwdpo.data.tables.remote_files import is_remote
from cwdpo.data.tables.web_image import WebImage
from cwdpo.errors import DataError

__all__ = ["DEFAULT_PROMPT", "Reading", "RowContext", "StoredCell", "build_group", "read_image", "read_images"]

DEFAULT_PROMPT = "Describe the image in one sentence."
"""The question that caption files do not ask."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_BASE64 = re.compile(r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]{53,}={0,2}\s*")
"""An encoded PNG, JPEG, GIF or WebP."""
_FILE = re.compile(r"file://(localhost(?=/))?", re.IGNORECASE)

_IMAGE_WORDS = re.compile(r"(image|img|picture|photo|pic)s?")
_SIDES = re.compile(
    "chosen|reject(ed)?|neg(ative)?|pos(itive)?|win(ner)?|loser?|[wl]|(dis)?preferred|better|worse|good|bad|corrupted|"
    "adversarial|counterfactual"
)


@dataclass(frozen=True)
class Reading:
    """What readers make of rows that leave a choice.

    Attributes:
        prompt: The question that captions answer.
        captions: Which caption of an image is the chosen answer: `first`, `random` (one an image, from `seed` and the
            file name, whatever the order), or `each` (a group a caption).
        seed: For `random`.
        pairs: What rated answers become: `best` (the best one against the others), `adjacent` (each against the next
            lower one) or `all` (each against every lower one).
        pair_gap: Least difference of the ratings of a pair; equal ratings never make one.
        private_addresses: Whether images are fetched from private networks and this machine.
    """

    prompt: str = DEFAULT_PROMPT
    captions: str = "first"
    seed: int = 0
    pairs: str = "best"
    pair_gap: float = 0.0
    private_addresses: bool = False

    def __post_init__(self) -> None:
        if self.captions not in ("first", "random", "each"):
            raise DataError(f"captions = {self.captions!r}: must be first, random or each")
        if self.pairs not in ("best", "adjacent", "all"):
            raise DataError(f"data.pairs = {self.pairs!r}: must be best, adjacent or all")
        if not self.pair_gap >= 0:
            raise DataError(f"data.pair_gap = {self.pair_gap}: must be at least 0, in units of the ratings")
        if not self.prompt.strip():
            raise DataError("prompt is empty: caption files need a question, for example " + repr(DEFAULT_PROMPT))


@dataclass(frozen=True)
class StoredCell:
    """Image bytes in one cell of a table on disk; see `cwdpo.data.schema.StoredBytes`.

    Attributes:
        file: Name of the table.
        row: Index from 0.
        column: Name of the column.
        position: Index in the cell where the cell is a list.
        table: The `datasets.Dataset`, in its Arrow form, memory-mapped.
    """

    file: str
    row: int
    column: str
    position: int | None
    table: Any = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """File, row and column."""
        return f"{self.file} row {self.row + 1} column '{self.column}'"

    def to_json(self) -> None:
        """Return None: the table is open in this process alone."""

    def read(self) -> bytes:
        """Return the bytes of the image file."""
        value = self.table[self.row].column(self.column)[0].as_py()
        return (value if self.position is None else value[self.position])["bytes"]


@dataclass(frozen=True)
class RowContext:
    """Where a row is.

    Attributes:
        file: Name of the file in messages and in `origin`.
        number: Row from 1, as an editor counts.
        root: Absolute folder that relative image paths start from.
        stem: Beginning of the ids of rows without an id.
        table: The table on disk that holds the row, where image bytes may stay.
        own: Whether a run wrote the row.
        row: The row as the table has it: an image's place in the table is found by it.
        reading: What the user asked for.
    """

    file: str
    number: int
    root: Path
    stem: str = "row"
    table: Any = field(default=None, repr=False, compare=False)
    own: bool = False
    row: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)
    reading: Reading = field(default_factory=Reading)

    def cell(self, value: Any) -> StoredCell | None:
        """Return where in the table an image of the row is, whatever a reader called its column since."""
        if self.table is None:
            return None
        for column, content in self.row.items():
            if content is value:
                return StoredCell(self.file, self.number - 1, column, None, self.table)
            if isinstance(content, list):
                for position, item in enumerate(content):
                    if item is value:
                        return StoredCell(self.file, self.number - 1, column, position, self.table)
        return None

    @property
    def default_id(self) -> str:
        """Id of a row that names none."""
        return f"{self.stem}-{self.number}"

    @property
    def origin(self) -> str:
        """`file:row`."""
        return f"{self.file}:{self.number}"


def read_images(row: Mapping[str, Any], context: RowContext, columns: Sequence[str]) -> tuple[ImageRef, ...]:
    """Return the images of the first of `columns` that is there; one image or a list, none where there is none.

    Raises:
        RowError: A value that is no image, a path that leaves the root, a video or sound beside the images, images of
            one answer that are not those of the other, or a column that would not be trained on.
    """
    refuse_untrained(row)
    for other in ("videos", "video", "audios", "audio"):
        if row.get(other):
            raise RowError("video or sound", f"{other}: only text and images can be trained on")
    name = next((c for c in columns if row.get(c) is not None), None)
    images = _images_of(row[name], context) if name is not None else ()
    sides = [key for key, value in row.items() if key not in columns and value is not None and _is_of_one_side(key)]
    for side in sides:
        if [identity(ref) for ref in _images_of(row[side], context)] != [identity(ref) for ref in images]:
            raise two_pictures(f"{side} differs from {name or 'images'}")
    return images


def _is_of_one_side(name: str) -> bool:
    """Return whether a column is named after the images of one answer: `rejected_images`, `img_w`."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return any(map(_IMAGE_WORDS.fullmatch, words)) and any(map(_SIDES.fullmatch, words))


def identity(ref: ImageRef) -> str:
    """Return what tells an image from others: its path, or its content."""
    try:
        return ref.path or (ref.stored.url if isinstance(ref.stored, WebImage) else ref.digest())
    except OSError as error:
        raise RowError("image cannot be read", f"{ref.name}: {error}") from None


def _images_of(value: Any, context: RowContext) -> tuple[ImageRef, ...]:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(read_image(v, context) for v in value)
    return (read_image(value, context),) if value != "" else ()


def read_image(value: Any, context: RowContext) -> ImageRef:
    """Return where one image is: a path, `{bytes, path}` as `datasets` writes, bytes, or a picture in memory.

    Args:
        value: As the row has it.
        context: Where the row is.

    Raises:
        RowError: None of these, or a path that cannot be used.
    """
    if isinstance(value, Image.Image):
        return ImageRef(picture=value)
    if isinstance(value, (bytes, bytearray)):
        return ImageRef(data=bytes(value))
    if isinstance(value, TarMember):
        return ImageRef(stored=value)
    if isinstance(value, Mapping) and set(value) == {"tar", "member", "offset", "size"}:
        return ImageRef(stored=_tar_member(value, context))
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        content, path = value.get("bytes"), value.get("path")
        if content is None and path is not None:
            return ImageRef(path=local_path(path, context.root))
        if not isinstance(content, (bytes, bytearray)):
            raise RowError("wrong type", f"image has neither bytes nor a path but {kind_of(content)}")
        cell = context.cell(value)
        return ImageRef(data=bytes(content)) if cell is None else ImageRef(stored=cell)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise RowError("wrong type", f"an image must be a path or {{bytes, path}}, not {kind_of(value)}")
    if value[:5].lower() == "data:":
        return ImageRef(data=_in_row(value))
    if _BASE64.fullmatch(value):
        return ImageRef(data=_in_row(f"data:;base64,{''.join(value.split())}"))
    if _WEB.match(value):
        return ImageRef(stored=WebImage(value, context.reading.private_addresses))
    return ImageRef(path=local_path(value, context.root))


def _in_row(address: str) -> bytes:
    """Return the bytes of a `data:` address."""
    head, comma, content = address.partition(",")
    try:
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("not in base64")
        return base64.b64decode(unquote(content), validate=True)
    except (ValueError, binascii.Error) as error:
        raise RowError("bad image address", f"{address[:40]!r} ({error})") from None


def _tar_member(value: Mapping[str, Any], context: RowContext) -> TarMember:
    """Return an image in a tar. Only rows that a run wrote may name a tar behind an address."""
    tar, offset, size = as_text(value["tar"], "tar"), value["offset"], value["size"]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (offset, size)):
        raise RowError("wrong type", "offset and size of an image in a tar must be whole numbers")
    if not (context.own and is_remote(tar)):
        tar = local_path(tar, context.root)
    return TarMember(tar, as_text(value["member"], "member"), offset, size)


def local_path(value: Any, root: Path) -> str:
    """Return an image path, relative ones from `root`, refusing addresses and paths that climb out of `root`."""
    text = as_text(value, "image path")
    if not text.strip() or "\0" in text:
        raise RowError("bad image path", f"{text!r}")
    if _FILE.match(text):
        text = unquote(_FILE.sub("", text, count=1))
    if _ADDRESS.match(text):
        raise RowError("image is an address", f"{text[:60]!r}; only files, http and https are read, download it first")
    if os.path.isabs(text):  # noqa: PTH117 (objects of pathlib take a third of the time of reading a row)
        return text
    folder = str(root)
    joined = os.path.normpath(os.path.join(folder, text))  # noqa: PTH118
    if joined != folder and not joined.startswith(folder.rstrip(os.sep) + os.sep):
        raise RowError("image path leaves its folder", f"{text!r} climbs out of {root}; set image_root to its folder")
    return joined


def build_group(
    context: RowContext,
    turns: Sequence[Message],
    images: Sequence[ImageRef],
    responses: Sequence[Response],
    *,
    name: Any = None,
    references: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    origin: str = "",
) -> PromptGroup:
    """Return the group of a row, its images placed in its prompt.

    Args:
        context: Where the row is.
        turns: Prompt with typed contents.
        images: In the order of their tags.
        responses: The answers.
        name: Id in the row, text or a whole number; the place of the row where None.
        references: Gold answers.
        facts: What else is known.
        origin: Where the row was first read, where it says so; else this file and row.

    Raises:
        RowError: Images and image parts do not agree, or the prompt is no prompt.
    """
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int)) or name == ""):
        raise RowError(
            "wrong type", f"id must be text or a whole number, not {kind_of(name) if name != '' else 'empty'}"
        )
    inside = tuple(read_image(value, context) for value in picture_values(turns))
    if inside and images and [identity(ref) for ref in inside] != [identity(ref) for ref in images]:
        raise two_pictures("the images in the messages differ from those of the row")
    images = images or inside
    return PromptGroup(
        id=context.default_id if name is None else as_text(str(name), "id"),
        images=tuple(images),
        messages=place_images(turns, len(images)),
        responses=tuple(responses),
        references=tuple(references),
        origin=origin or context.origin,
        facts=dict(facts or {}),
    )
