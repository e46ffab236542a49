"""Groups written to disk in our own format."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cwdpo.data.images import open_image
from cwdpo.data.schema import ImageRef, PromptGroup
from cwdpo.files import write_bytes, write_jsonl

__all__ = ["as_file", "with_image_files", "write_groups"]


def with_image_files(group: PromptGroup, folder: Path) -> PromptGroup:
    """Return the group with every image as a file: those without a file go to `folder`, named by content.

    Raises:
        DataError: A picture in memory cannot be used.
    """
    return replace(group, images=tuple(as_file(ref, folder) for ref in group.images))


def write_groups(path: Path, groups: Iterable[PromptGroup], images: Path | None = None) -> None:
    """Write groups as JSON lines that `load_groups` reads back equal.

    Args:
        path: The file.
        groups: The groups.
        images: Where images that are no files are written; default `<name of the file>_images` beside it.
    """
    folder = (images or path.with_name(f"{path.stem}_images")).absolute()
    write_jsonl(path, (with_image_files(group, folder).to_json() for group in groups))


def as_file(ref: ImageRef, folder: Path) -> ImageRef:
    """Return an image as a file: one that is none is written to `folder`, named by content."""
    if ref.path is not None:
        return ref
    target = folder / ref.digest()
    if ref.picture is not None:
        target = target.with_suffix(".png")
        if not target.exists():
            buffer = io.BytesIO()
            open_image(ref).save(buffer, format="PNG")
            write_bytes(target, buffer.getvalue())
        return ImageRef(path=str(target))
    content = ref.data if ref.data is not None else ref.stored.read() if ref.stored is not None else b""
    if not target.exists():
        write_bytes(target, content)
    return ImageRef(path=str(target))
