"""VLFeedback: answers of a dozen models, rated by GPT-4V in three aspects (arXiv:2312.10665)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from cwdpo.data.row_format import Format
from cwdpo.data.row_values import first_of

__all__ = ["VlFeedback"]


class VlFeedback(Format):
    """VLFeedback: four answers to each question, rated for helpfulness, faithfulness and ethics."""

    name: ClassVar[str] = "vlfeedback"
    hub: ClassVar[tuple[str, ...]] = ("MMInstruction/VLFeedback",)
    rows: ClassVar[str] = "about 80,000"
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "the prompt",
        "img_path, image": "the image",
        "completions": "the answers (`response`), of which `data.pairs` makes pairs by the mean of the ratings in "
        "`annotations`; an answer without any rating is left out",
        "id": "the row's id",
    }
    needs: ClassVar[frozenset[str]] = frozenset(("prompt", "completions"))

    @staticmethod
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ours with rated answers; completions are a list of objects, or one object of lists."""
        made = row["completions"]
        if isinstance(made, Mapping):
            made = [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]
        rated = [(one["response"], list(_ratings(one["annotations"]))) for one in made]
        answers = [{"text": text, "rating": sum(values) / len(values)} for text, values in rated if values]
        images = first_of(row, "image", "images", "img_path")
        return {"id": row.get("id"), "prompt": row["prompt"], "images": images, "answers": answers}


def _ratings(aspects: Mapping[str, Any]) -> Iterator[float]:
    """Yield the ratings of the aspects, which are texts such as "4"."""
    for aspect in aspects.values():
        rating = str((aspect or {}).get("Rating") or "").strip()
        if rating.replace(".", "", 1).isdigit():
            yield float(rating)
