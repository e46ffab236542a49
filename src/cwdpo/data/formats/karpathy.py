"""Karpathy's JSON: the splits of COCO and Flickr that captioning uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.formats.captions import caption_groups, samples_of
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_format import Format
from cwdpo.data.row_values import as_list, as_mapping, as_text, require_column
from cwdpo.data.schema import PromptGroup
from cwdpo.data.tables.find_files import data_files, image_folder
from cwdpo.data.tables.raw_row import RawRow, RawTable
from cwdpo.data.tables.text_tables import json_document
from cwdpo.errors import DataError

__all__ = ["Karpathy"]

_TRAIN = ("train", "restval")


class Karpathy(Format):
    """Karpathy's JSON (COCO, Flickr): one object with `images`, each with its split and sentences."""

    name: ClassVar[str] = "karpathy"
    columns: ClassVar[Mapping[str, str]] = {
        "filepath, filename": "the image",
        "split": "`data.split`; `restval` belongs to train",
        "sentences": "captions (`raw`): the chosen answer to `data.prompt`; all of an image are its references",
    }

    @classmethod
    def holds(cls, document: Mapping[str, Any]) -> bool:
        """Return whether images have sentences."""
        images = document.get("images")
        return isinstance(images, list) and any(isinstance(item, dict) and "sentences" in item for item in images)

    @classmethod
    def open(cls, path: Path, split: str | None) -> RawTable:
        """Return the images of a split; `all` is every image."""
        if path.is_dir():
            path = data_files(path, None)[0]
        document = json_document(path)
        images = document.get("images") if isinstance(document, dict) else None
        if not isinstance(images, list) or not images:
            raise DataError(f"{path}: no list 'images' with something in it, so not a Karpathy JSON")
        wanted = _TRAIN if split in (None, "train") else None if split == "all" else (split,)
        rows = [
            RawRow(number, value, file=path.name)
            for number, value in enumerate(images, 1)
            if wanted is None or not isinstance(value, Mapping) or value.get("split") in wanted
        ]
        if not any(isinstance(row.value, Mapping) for row in rows):
            splits = sorted({str(image.get("split")) for image in images if isinstance(image, Mapping)})
            raise DataError(f"{path}: no image of split {split or 'train'!r}; it has {', '.join(splits) or 'none'}")
        samples = samples_of(rows, lambda v: str(Path(str(v.get("filepath") or "")) / str(v.get("filename"))))
        return RawTable(image_folder(path.parent, samples).absolute(), rows)

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the groups of one entry of `images`: `filepath`, `filename`, `sentences[].raw`."""
        filename = as_text(require_column(row, "filename"), "filename")
        folder = as_text(row.get("filepath") or "", "filepath")
        captions = [
            as_text(as_mapping(sentence, f"sentences[{i}]").get("raw"), f"sentences[{i}].raw")
            for i, sentence in enumerate(as_list(require_column(row, "sentences"), "sentences"))
        ]
        return caption_groups(str(Path(folder) / filename), filename, captions, context)
