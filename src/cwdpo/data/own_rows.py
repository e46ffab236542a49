"""Our own rows: a prompt, its images, and K responses with role, source and difficulty."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from cwdpo.data.messages import Message, read_turns, tagged_parts
from cwdpo.data.rated_answers import rated_sets
from cwdpo.data.row_context import RowContext, build_group, read_images
from cwdpo.data.row_values import RowError, as_list, as_mapping, as_text, first_of, require_column
from cwdpo.data.schema import CHOSEN, DIFFICULTIES, REJECTED, PromptGroup, Response

__all__ = ["read_native"]


def read_native(row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
    """Return the group of one row; what `PromptGroup.to_json` writes reads back equal.

    Columns: `prompt` (text or messages), `images` or `image`; then any of `chosen` (text), `rejected` (text or list of
    texts), `negatives` (`{text, source, difficulty, score}`), `responses` (the same with a `role`), `answers`
    (`{text, rating}`, of which pairs are made as `data.pairs` says, so that there may be several groups); and `id`,
    `references`, `facts` (an object, or JSON text where a column cannot hold free objects), `origin`.
    """
    prompt = require_column(row, "prompt")
    turns: list[Message] = (
        [{"role": "user", "content": tagged_parts(as_text(prompt, "prompt"))}]
        if isinstance(prompt, str)
        else read_turns(prompt, "prompt")
    )
    responses: list[Response] = []
    if row.get("chosen") is not None:
        responses.append(Response(as_text(row["chosen"], "chosen")))
    if row.get("rejected") is not None:
        value = row["rejected"]
        texts = [value] if isinstance(value, str) else as_list(value, "rejected")
        responses += [Response(as_text(text, "rejected"), REJECTED) for text in texts]
    responses += [
        _response(value, f"negatives[{i}]", REJECTED)
        for i, value in enumerate(as_list(first_of(row, "negatives") or [], "negatives"))
    ]
    responses += [
        _response(value, f"responses[{i}]", None)
        for i, value in enumerate(as_list(first_of(row, "responses") or [], "responses"))
    ]
    sets, name = [responses], row.get("id")
    if row.get("answers") is not None:
        sets = [[*responses, *pairs] for pairs in rated_sets(_answers(row["answers"]), context.reading)]
    images = read_images(row, context, ("images", "image"))
    more: dict[str, Any] = {
        "references": [as_text(r, "references") for r in as_list(row.get("references") or [], "references")],
        "facts": _facts(row.get("facts")),
        "origin": as_text(row.get("origin") or "", "origin"),
    }
    if len(sets) == 1:
        return [build_group(context, turns, images, sets[0], name=name, **more)]
    stem = context.default_id if name is None else name
    return [build_group(context, turns, images, r, name=f"{stem}#{i}", **more) for i, r in enumerate(sets, 1)]


def _answers(value: Any) -> list[tuple[str, float]]:
    answers = [as_mapping(answer, f"answers[{i}]") for i, answer in enumerate(as_list(value, "answers"))]
    return [
        (as_text(answer.get("text"), f"answers[{i}].text"), _finite(answer.get("rating"), f"answers[{i}].rating"))
        for i, answer in enumerate(answers)
    ]


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RowError("wrong type", f"{what} = {value!r}: must be a finite number")
    return float(value)


_UNTRAINED = ("image", "img", "picture", "video", "audio", "reasoning", "thinking", "tool")
"""What a field of a response is called that would be trained on if it could be."""


def _response(value: Any, what: str, role: str | None) -> Response:
    """Return one response; `role` is the one that the column implies, None where each response names its own."""
    fields = as_mapping(value, what)
    for key, content in fields.items():
        if content and any(word in key.lower() for word in _UNTRAINED):
            raise RowError("field that is not trained on", f"{what}.{key}: a response is its text; drop it")
    difficulty = fields.get("difficulty")
    if difficulty is not None and difficulty not in DIFFICULTIES:
        raise RowError("unknown difficulty", f"{what}.difficulty = {difficulty!r}; known: {', '.join(DIFFICULTIES)}")
    name = as_text(fields.get("role") or CHOSEN, f"{what}.role") if role is None else role
    source = as_text(fields.get("source") or "dataset", f"{what}.source")
    score = None if fields.get("score") is None else _finite(fields["score"], f"{what}.score")
    return Response(as_text(fields.get("text"), f"{what}.text"), name, source, difficulty, score)


def _facts(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError("wrong type", "facts must be an object or JSON text of one") from None
    return as_mapping({} if value is None else value, "facts")
