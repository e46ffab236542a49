"""What every row must keep, whatever format it came in."""

from __future__ import annotations

from cwdpo.data.row_values import MOST_IMAGES, RowError
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup

__all__ = ["REQUIREMENTS", "TEXT_LIMIT", "check_group"]

TEXT_LIMIT = 1_000_000
"""Characters that a row may have, prompt and answers together, where `data.text_limit` is not set."""

REQUIREMENTS = ("chosen", "pair", "response")
"""What a use needs of a row: a chosen answer (Stage 1 data, captions); also a rejected one (preference); any answer."""


def check_group(group: PromptGroup, require: str, text_limit: int | None = TEXT_LIMIT) -> None:
    """Raise unless a group can be trained on.

    Args:
        group: As a reader made it.
        require: One of `REQUIREMENTS`.
        text_limit: Most characters of prompt and answers together; None sets no limit.

    Raises:
        RowError: An empty answer, a chosen answer equal to a rejected one, no answer of a required role, or more text
            or images than are let through to the model.
    """
    if len(group.images) > MOST_IMAGES:
        raise RowError("too many images", f"{len(group.images):,}, the limit is {MOST_IMAGES:,}")
    if text_limit is not None:
        texts = (part.get("text", "") for message in group.messages for part in message["content"])
        size = sum(map(len, texts)) + sum(len(r.text) for r in group.responses) + sum(map(len, group.references))
        if size > text_limit:
            raise RowError("text too long", f"{size:,} characters, the limit is {text_limit:,} (data.text_limit)")
    for response in group.responses:
        if not response.text.strip():
            raise RowError("empty response", f"the {response.role} response has no text")
    if any(not text.strip() for text in group.references):
        raise RowError("empty reference", "one of references has no text")
    chosen, rejected = group.by_role(CHOSEN), group.by_role(REJECTED)
    if require == "response" and not group.responses:
        raise RowError("no response", "the row has neither chosen, rejected nor responses")
    if require in ("chosen", "pair") and not chosen:
        raise RowError("no chosen response", "the row has none")
    if require == "pair" and not rejected:
        raise RowError("no rejected response", "a preference row needs one")
    same = {_words(r.text) for r in chosen} & {_words(r.text) for r in rejected}
    if same:
        raise RowError("chosen equals rejected", "compared with whitespace collapsed")


def _words(text: str) -> str:
    return " ".join(text.split())
