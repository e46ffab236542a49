"""Images with human captions, in a table; and what every format of captions shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.messages import tagged_parts
from cwdpo.data.row_context import RowContext, build_group, read_image
from cwdpo.data.row_format import Format
from cwdpo.data.row_values import RowError, as_text
from cwdpo.data.schema import PromptGroup, Response
from cwdpo.data.tables.find_files import captions_csv, image_folder
from cwdpo.data.tables.raw_row import RawTable
from cwdpo.data.tables.text_tables import caption_rows
from cwdpo.errors import DataError
from cwdpo.files import text_digest

__all__ = ["Captions", "caption_groups", "samples_of"]

_SAMPLES = 20


class Captions(Format):
    """A folder of images with a captions table (CSV), or a tar of images with texts."""

    name: ClassVar[str] = "captions"
    columns: ClassVar[Mapping[str, str]] = {
        "image, file_name, …": "the image",
        "caption, text, …": "a caption: the chosen answer to `data.prompt`; all of an image are its references",
    }

    @classmethod
    def open(cls, path: Path, split: str | None) -> RawTable:
        """Return one row an image."""
        file = captions_csv(path) if path.is_dir() else path
        if file is None:
            raise DataError(f"{path}: no captions CSV in this folder (a header with an image and a caption column)")
        rows = list(caption_rows(file))
        samples = [row.value["image"] for row in rows[:_SAMPLES] if row.error is None]
        return RawTable(image_folder(file.parent, samples).absolute(), rows)

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the groups of one image, its captions already gathered: `image`, `captions`."""
        captions = [as_text(text, "caption") for text in row["captions"]]
        if not isinstance(row["image"], str):  # in a tar
            return caption_groups(row["image"], as_text(str(row["id"]), "id"), captions, context)
        return caption_groups(row["image"], as_text(row["image"], "image"), captions, context)


def samples_of(rows: Sequence[Any], name: Any) -> list[str]:
    """Return the first paths of images, by which their folder is found.

    Args:
        rows: Raw rows.
        name: Makes the path of an object.
    """
    return [name(row.value) for row in rows[:_SAMPLES] if isinstance(row.value, Mapping)]


def caption_groups(
    image: Any,
    name: str,
    captions: Sequence[str],
    context: RowContext,
    facts: Mapping[str, Any] | None = None,
) -> list[PromptGroup]:
    """Return one group of an image, or one a caption; every caption is a reference of each."""
    texts = [caption.strip() for caption in captions]
    if not texts:
        raise RowError("no caption", f"{name} has none")
    if not all(texts):
        raise RowError("empty caption", f"caption {texts.index('') + 1} of {name} is empty")
    choice, ref = context.reading, read_image(image, context)
    turns = [{"role": "user", "content": tagged_parts(choice.prompt)}]
    picks = {
        "first": [0],
        "random": [int(text_digest(str(choice.seed), name)[:15], 16) % len(texts)],
        "each": list(range(len(texts))),
    }[choice.captions]
    return [
        build_group(
            context,
            turns,
            [ref],
            [Response(texts[i])],
            name=f"{name}#{i + 1}" if choice.captions == "each" else name,
            references=texts,
            facts=facts,
        )
        for i in picks
    ]
