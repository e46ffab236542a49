"""COCO's own captions JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.formats.captions import caption_groups, samples_of
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_format import Format
from cwdpo.data.row_values import as_text, require_column
from cwdpo.data.schema import PromptGroup
from cwdpo.data.tables.find_files import data_files, image_folder
from cwdpo.data.tables.raw_row import RawRow, RawTable
from cwdpo.data.tables.text_tables import json_document
from cwdpo.errors import DataError

__all__ = ["Coco"]


class Coco(Format):
    """COCO's captions JSON (COCO, NoCaps): one object with `images`, and `annotations` with their captions."""

    name: ClassVar[str] = "coco"
    columns: ClassVar[Mapping[str, str]] = {
        "images": "`file_name` is the image, `id` the row's id, `domain` (NoCaps) a fact",
        "annotations": "`caption`: the chosen answer to `data.prompt`; all of an image are its references",
    }

    @classmethod
    def holds(cls, document: Mapping[str, Any]) -> bool:
        """Return whether there are lists of images without sentences, and of annotations."""
        images, notes = document.get("images"), document.get("annotations")
        if not isinstance(images, list) or not isinstance(notes, list):
            return False
        return not any(isinstance(item, dict) and "sentences" in item for item in images)

    @classmethod
    def open(cls, path: Path, split: str | None) -> RawTable:
        """Gather the captions of each image of a COCO JSON; images without any are left out."""
        if path.is_dir():
            path = data_files(path, None)[0]
        document = json_document(path)
        images, notes = (document.get(key) if isinstance(document, dict) else None for key in ("images", "annotations"))
        if not isinstance(images, list) or not isinstance(notes, list):
            raise DataError(f"{path}: no lists 'images' and 'annotations', so not a captions JSON of COCO's form")
        captions: dict[Any, list[Any]] = {}
        for number, note in enumerate(notes, 1):
            if not isinstance(note, Mapping) or "image_id" not in note or "caption" not in note:
                raise DataError(f"{path}: annotation {number} has no image_id or no caption")
            captions.setdefault(str(note["image_id"]), []).append(note["caption"])
        rows = [
            RawRow(number, {**value, "captions": captions[str(value.get("id"))]}, file=path.name)
            for number, value in enumerate(images, 1)
            if isinstance(value, Mapping) and str(value.get("id")) in captions
        ]
        if not rows:
            raise DataError(f"{path}: no image has an annotation; the test split has no captions to compare with")
        samples = samples_of(rows, lambda value: str(value.get("file_name")))
        return RawTable(image_folder(path.parent, samples).absolute(), rows)

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the groups of one entry of `images`, its captions already gathered."""
        image = as_text(require_column(row, "file_name"), "file_name")
        captions = [as_text(text, "caption") for text in row["captions"]]
        facts = {"domain": as_text(row["domain"], "domain")} if row.get("domain") is not None else {}
        return caption_groups(image, str(require_column(row, "id")), captions, context, facts)
