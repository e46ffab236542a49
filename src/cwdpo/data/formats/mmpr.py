"""MMPR, the preference data of InternVL (arXiv:2411.10442), versions 1.0, 1.1 and 1.2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.row_format import Format
from cwdpo.data.tables.raw_row import RawRow, RawTable
from cwdpo.data.tables.text_tables import json_document, jsonl_rows
from cwdpo.errors import DataError

__all__ = ["Mmpr"]


class Mmpr(Format):
    """MMPR: reasoning about images, a right and a wrong chain of thought; a file of it, or `meta.json` for all."""

    name: ClassVar[str] = "mmpr"
    hub: ClassVar[tuple[str, ...]] = ("OpenGVLab/MMPR", "OpenGVLab/MMPR-v1.1", "OpenGVLab/MMPR-v1.2")
    licence: ClassVar[str] = "MIT"
    columns: ClassVar[Mapping[str, str]] = {
        "question": "the prompt",
        "image": "the image, or a list of them, from the `root` of its set; none for text alone",
        "chosen": "the chosen answer",
        "rejected": "the rejected answer",
        "id": "the row's id; with `meta.json` behind the name of its set",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("question", "chosen", "rejected"))
    without: ClassVar[frozenset[str]] = frozenset(("prompt",))
    index: ClassVar[str] = "meta.json"

    @classmethod
    def holds(cls, document: Mapping[str, Any]) -> bool:
        """Return whether a document maps names of sets to their folder and their annotations."""
        sets = list(document.values())
        return bool(sets) and all(isinstance(one, dict) and {"root", "annotation"} <= one.keys() for one in sets)

    @classmethod
    def open(cls, path: Path, split: str | None) -> RawTable | None:
        """Return the rows of all sets of a `meta.json`, their images from where it lies."""
        index = path / cls.index if path.is_dir() else path
        if index.name != cls.index or not index.is_file():
            return None
        sets = json_document(index)
        if not isinstance(sets, dict) or not cls.holds(sets):
            raise DataError(f"{index}: must map names of sets to objects with root and annotation, as MMPR's does")
        return RawTable(index.parent.absolute(), _rows(index, sets))

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours."""
        images = {key: row[key] for key in ("image", "images", "video", "videos") if row.get(key)}
        texts = {"prompt": row["question"], "chosen": row["chosen"], "rejected": row["rejected"]}
        return {"id": row.get("id"), **images, **texts}


def _beside(index: Path, name: str, place: str) -> Path:
    """Return a place that is given from MMPR's own folder, or from the one above it."""
    for folder in (index.parent, index.parent.parent):
        if (folder / place).exists():
            return folder / place
    raise DataError(f"{index} set {name!r}: {place} is not there; unzip MMPR's archives beside it")


def _rows(index: Path, sets: Mapping[str, Mapping[str, Any]]) -> Iterator[RawRow]:
    places = {name: [_beside(index, name, one[key]) for key in ("root", "annotation")] for name, one in sets.items()}
    for name, (root, annotation) in places.items():
        for row in jsonl_rows(annotation):
            if isinstance(row.value, dict) and row.error is None:
                value = {**row.value, "id": f"{name}/{row.value.get('id', row.number)}"}
                if (image := value.get("image")) is not None:
                    value["image"] = [str(root / i) for i in ([image] if isinstance(image, str) else image)]
                row = replace(row, value=value)
            yield row
