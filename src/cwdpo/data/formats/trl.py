"""TRL's preference rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from cwdpo.data.messages import Message, read_answer, read_turns, shared_turns, tagged_parts
from cwdpo.data.row_context import RowContext, build_group, read_images
from cwdpo.data.row_format import Format, columns_of
from cwdpo.data.row_values import RowError, as_text, first_of, require_column
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response

__all__ = ["Trl", "read_trl"]

_IMAGES = ("images", "image", "img_path", "image_path")


class Trl(Format):
    """TRL's preference rows, in plain text or as conversations."""

    name: ClassVar[str] = "trl"
    hub: ClassVar[tuple[str, ...]] = (
        "trl-lib/rlaif-v",
        "HuggingFaceH4/rlaif-v_formatted",
        "fwnlp/mDPO-preference-data",
    )
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "the prompt, text or turns; without it what the answers begin with in common",
        "chosen": "the chosen answer, text, a turn, or the whole conversation",
        "rejected": "the rejected answer, the same",
        "images, image, img_path, image_path": "the images: the first of these columns that is there",
        "score_chosen, score_rejected": "how good the answers are, numbers; what is no number is none",
        "id": "the row's id",
    }

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> Collection[str]:
        """Return the columns: both answers, if the rejected one is no list of texts."""
        needs, rejected = frozenset(("chosen", "rejected")), row.get("rejected")
        listed = isinstance(rejected, list) and bool(rejected) and all(isinstance(item, str) for item in rejected)
        return needs if needs <= columns_of(row) and not listed else ()

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the group of a row."""
        return read_trl(row, context)


def read_trl(row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
    """Return the group of one row.

    A plain text prompt becomes a user turn. In conversations `chosen` and `rejected` are the assistant turn, or the
    whole conversation: what they share with `prompt`, or with each other where there is no `prompt`, is the prompt.
    """
    sides = {role: require_column(row, role) for role in (CHOSEN, REJECTED)}
    prompt = first_of(row, "prompt")
    if all(isinstance(side, str) for side in sides.values()):
        if prompt is None:
            raise RowError("missing column", "'prompt' is not in the row, and plain answers do not show where it ends")
        turns = _prompt(prompt)
        texts = {role: as_text(side, role) for role, side in sides.items()}
    else:
        answers = {role: _answer_turns(side, role) for role, side in sides.items()}
        turns = _shared_start(*answers.values()) if prompt is None else _prompt(prompt)
        texts = {role: read_answer(_without_start(answer, turns), role) for role, answer in answers.items()}
    responses = [Response(texts[role], role, score=_score(row.get(f"score_{role}"))) for role in (CHOSEN, REJECTED)]
    images = read_images(row, context, _IMAGES)
    return [build_group(context, turns, images, responses, name=row.get("id"))]


def _score(value: Any) -> float | None:
    """Return a column's score; None where it holds something else, for most methods read none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": tagged_parts(as_text(value, "prompt"))}]
    return read_turns(value, "prompt")


def _answer_turns(value: Any, what: str) -> list[Message]:
    """Return an answer as turns; text beside a conversation, and one turn that is not in a list, are taken too."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": [{"type": "text", "text": as_text(value, what)}]}]
    return read_turns([value] if isinstance(value, Mapping) else value, what)


def _shared_start(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """Return the turns that both begin with, at most all but the last of each (the answers may be equal)."""
    most = max(min(len(chosen), len(rejected)) - 1, 0)
    return list(chosen[: shared_turns(chosen[:most], rejected[:most], "chosen and rejected")])


def _without_start(answer: Sequence[Message], prompt: Sequence[Message]) -> Sequence[Message]:
    whole = len(answer) > len(prompt) and shared_turns(answer, prompt, "prompt and answers") == len(prompt)
    return answer[len(prompt) :] if whole else answer
