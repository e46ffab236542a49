"""HA-DPO: descriptions and answers with their hallucinations corrected (arXiv:2311.16839); both of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from cwdpo.data.own_rows import read_native
from cwdpo.data.row_context import DEFAULT_PROMPT, RowContext
from cwdpo.data.row_format import Format
from cwdpo.data.row_values import require_column
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup
from cwdpo.data.tables.raw_row import RawRow, RawTable
from cwdpo.data.tables.text_tables import json_document

__all__ = ["HaDpo"]

_FOLDERS = ("", "VG_100K", "VG_100K_2", "VG/VG_100K", "VG/VG_100K_2")
_DESCRIBE = "Describe this image in detail."


class HaDpo(Format):
    """HA-DPO: `desc_data.json`, descriptions by image, or `pope_data.json`, answers to questions of POPE's kind."""

    name: ClassVar[str] = "ha_dpo"
    columns: ClassVar[Mapping[str, str]] = {
        "image_id": "the image of Visual Genome, in `VG_100K` or `VG_100K_2` of `data.image_root`",
        "question": "the prompt; of descriptions `data.prompt`, or a request for details",
        "chosen": "the chosen answer, or all of them",
        "reject, rejected": "the rejected answer, or all of them",
        "answer, correct": "not read: yes or no, and whether the model was right",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("image_id", "question", "chosen", "reject"))

    @classmethod
    def holds(cls, document: Mapping[str, Any]) -> bool:
        """Return whether a document maps images to chosen and rejected descriptions."""
        images = list(document.values())
        return bool(images) and all(isinstance(one, dict) and {"chosen", "rejected"} <= one.keys() for one in images)

    @classmethod
    def open(cls, path: Path, split: str | None) -> RawTable | None:
        """Return the images of `desc_data.json` as rows; None for a list of questions."""
        document = json_document(path) if path.is_file() and path.suffix == ".json" else None
        if not isinstance(document, dict) or not cls.holds(document):
            return None
        rows = ({"image_id": image, **one} for image, one in document.items())
        table = [RawRow(number, row, file=path.name) for number, row in enumerate(rows, 1)]
        return RawTable(path.parent.absolute(), table)

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the group of a row."""
        file = f"{require_column(row, 'image_id')}.jpg"
        image = next((str(Path(f) / file) for f in _FOLDERS if (context.root / f / file).is_file()), file)
        shared = {"image": image, "origin": context.origin}
        if "reject" in row:
            prompt, chosen = require_column(row, "question"), require_column(row, "chosen")
            return read_native({**shared, "prompt": prompt, "chosen": chosen, "rejected": row["reject"]}, context)
        prompt = _DESCRIBE if context.reading.prompt == DEFAULT_PROMPT else context.reading.prompt
        answers = [{"text": text, "role": role} for role in (CHOSEN, REJECTED) for text in require_column(row, role)]
        return read_native({**shared, "prompt": prompt, "responses": answers}, context)
