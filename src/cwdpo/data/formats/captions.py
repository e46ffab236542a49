"""Images with human captions: Karpathy's JSON (COCO, Flickr), COCO's own JSON (NoCaps), and a folder with a CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwdpo.data.messages import tagged_parts
from cwdpo.data.row_context import DEFAULT_PROMPT, RowContext, build_group, read_image
from cwdpo.data.row_values import RowError, as_list, as_mapping, as_text, require_column
from cwdpo.data.schema import PromptGroup, Response
from cwdpo.errors import DataError
from cwdpo.files import text_digest

__all__ = ["CaptionChoice", "read_captioned", "read_coco", "read_karpathy"]


@dataclass(frozen=True)
class CaptionChoice:
    """Which caption of an image is the chosen answer.

    Attributes:
        prompt: The question that the captions answer.
        pick: `first`, `random` (one an image, from `seed` and the file name, whatever the order), or `each` (a group
            a caption).
        seed: For `random`.
    """

    prompt: str = DEFAULT_PROMPT
    pick: str = "first"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pick not in ("first", "random", "each"):
            raise DataError(f"captions = {self.pick!r}: must be first, random or each")
        if not self.prompt.strip():
            raise DataError("prompt is empty: caption files need a question, for example " + repr(DEFAULT_PROMPT))


def read_karpathy(row: Mapping[str, Any], context: RowContext, choice: CaptionChoice) -> list[PromptGroup]:
    """Return the groups of one entry of `images`: `filepath`, `filename`, `sentences[].raw`."""
    filename = as_text(require_column(row, "filename"), "filename")
    folder = as_text(row.get("filepath") or "", "filepath")
    captions = [
        as_text(as_mapping(sentence, f"sentences[{i}]").get("raw"), f"sentences[{i}].raw")
        for i, sentence in enumerate(as_list(require_column(row, "sentences"), "sentences"))
    ]
    return caption_groups(str(Path(folder) / filename), filename, captions, context, choice)


def read_coco(row: Mapping[str, Any], context: RowContext, choice: CaptionChoice) -> list[PromptGroup]:
    """Return the groups of one entry of `images`, its captions already gathered; the image's number is the row's id.

    NoCaps' `domain` becomes a fact.
    """
    image = as_text(require_column(row, "file_name"), "file_name")
    captions = [as_text(text, "caption") for text in row["captions"]]
    facts = {"domain": as_text(row["domain"], "domain")} if row.get("domain") is not None else {}
    return caption_groups(image, str(require_column(row, "id")), captions, context, choice, facts)


def read_captioned(row: Mapping[str, Any], context: RowContext, choice: CaptionChoice) -> list[PromptGroup]:
    """Return the groups of one image of a captions CSV, its rows already gathered: `image`, `captions`."""
    captions = [as_text(text, "caption") for text in row["captions"]]
    if not isinstance(row["image"], str):  # in a tar
        return caption_groups(row["image"], as_text(str(row["id"]), "id"), captions, context, choice)
    return caption_groups(row["image"], as_text(row["image"], "image"), captions, context, choice)


def caption_groups(
    image: Any,
    name: str,
    captions: Sequence[str],
    context: RowContext,
    choice: CaptionChoice,
    facts: Mapping[str, Any] | None = None,
) -> list[PromptGroup]:
    """Return one group of an image, or one a caption; every caption is a reference of each."""
    texts = [caption.strip() for caption in captions]
    if not texts:
        raise RowError("no caption", f"{name} has none")
    if not all(texts):
        raise RowError("empty caption", f"caption {texts.index('') + 1} of {name} is empty")
    ref = read_image(image, context, None, None)
    turns = [{"role": "user", "content": tagged_parts(choice.prompt)}]
    picks = {
        "first": [0],
        "random": [int(text_digest(str(choice.seed), name)[:15], 16) % len(texts)],
        "each": list(range(len(texts))),
    }[choice.pick]
    return [
        build_group(
            context,
            turns,
            [ref],
            [Response(texts[i])],
            name=f"{name}#{i + 1}" if choice.pick == "each" else name,
            references=texts,
            facts=facts,
        )
        for i in picks
    ]
