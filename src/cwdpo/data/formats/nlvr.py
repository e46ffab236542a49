"""NLVR: sentences about drawn boxes, true or false (Suhr et al. 2017; github.com/lil-lab/nlvr)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cwdpo.data.own_rows import read_native
from cwdpo.data.row_context import RowContext
from cwdpo.data.row_format import Format
from cwdpo.data.row_values import RowError, require_column
from cwdpo.data.schema import PromptGroup

__all__ = ["Nlvr"]

_QUESTION = "Is this true of the image? Answer true or false."


class Nlvr(Format):
    """NLVR: a sentence and whether it is true of an image; the answer true is chosen, or the answer false."""

    name: ClassVar[str] = "nlvr"
    licence: ClassVar[str] = "CC-BY-4.0"
    columns: ClassVar[Mapping[str, str]] = {
        "sentence": "the prompt, with the question whether it is true",
        "label": "true or false: the chosen answer, the other one rejected",
        "identifier, directory": "the image, the first of its six orders: "
        "`images/DIRECTORY/SPLIT-IDENTIFIER-0.png`, the split being the name of the file",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("sentence", "identifier", "label"))

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the group of a row."""
        sentence, identifier = require_column(row, "sentence"), require_column(row, "identifier")
        label, split = str(require_column(row, "label")).lower(), context.file.partition(".")[0]
        if label not in ("true", "false"):
            raise RowError("unknown label", f"label = {row['label']!r}; must be true or false")
        file = f"images/{row.get('directory', '')}/{split}-{identifier}-0.png"
        image = file if (context.root / file).is_file() else f"{split}/{file}"
        answers = {"chosen": label, "rejected": "false" if label == "true" else "true"}
        made = {"id": identifier, "prompt": f"{sentence}\n{_QUESTION}", "image": image, **answers}
        return read_native(made, context)
