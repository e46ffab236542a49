"""What every row must keep, whatever format it came in."""

from __future__ import annotations

from cwdpo.data.row_values import RowError
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup

__all__ = ["REQUIREMENTS", "check_group"]

REQUIREMENTS = ("chosen", "pair", "response")
"""What a use needs of a row: a chosen answer (Stage 1 data, captions); also a rejected one (preference); any answer."""


def check_group(group: PromptGroup, require: str) -> None:
    """Raise unless a group can be trained on.

    Args:
        group: As a reader made it.
        require: One of `REQUIREMENTS`.

    Raises:
        RowError: An empty answer, a chosen answer equal to a rejected one, or no answer of a required role.
    """
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
