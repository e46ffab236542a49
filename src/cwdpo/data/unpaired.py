"""Answers that are each marked good or bad (KTO's rows), grouped by prompt into rows of ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cwdpo.data.messages import read_answer, read_turns
from cwdpo.data.row_columns import proposal, renamed
from cwdpo.data.row_values import RowError, as_list, as_text
from cwdpo.data.schema import CHOSEN, REJECTED
from cwdpo.data.tables.raw_row import RawRow

__all__ = ["paired"]

_IMAGES = ("images", "image", "img_path", "image_path")
_OTHERS = ("system", "videos", "audios", "tools")


def paired(rows: Iterable[RawRow], columns: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield one row of ours for every prompt (with its images), all its good answers chosen, all its bad ones rejected.

    TRL's rows (`prompt`, `completion`, `label`), ms-swift's (`messages`, `label`) and LLaMA-Factory's (`messages` or
    `conversations`, `kto_tag`). Prompts and answers are held in memory. A prompt without both kinds is a bad row.

    Args:
        rows: As the file has them.
        columns: What columns are called in the file, as in `DataSource`.
    """
    prompts: dict[str, tuple[RawRow, dict[str, Any]]] = {}
    for row in rows:
        try:
            if row.error is not None or not isinstance(row.value, Mapping):
                yield row
                continue
            made, text, good = _read(renamed(row.value, columns))
        except RowError as error:
            yield RawRow(row.number, row.value, error, row.file)
            continue
        answer = {"text": text, "role": CHOSEN if good else REJECTED}
        key = hashlib.sha256(json.dumps(made, sort_keys=True, default=_content).encode()).hexdigest()
        prompts.setdefault(key, (row, {**made, "responses": []}))[1]["responses"].append(answer)
    for first, made in prompts.values():
        roles = {answer["role"] for answer in made["responses"]}
        missing = next((role for role in (CHOSEN, REJECTED) if role not in roles), None)
        error = None if missing is None else RowError("no pair", f"no answer to this prompt is {missing}")
        yield RawRow(first.number, made, error, first.file)


def _read(row: Mapping[str, Any]) -> tuple[dict[str, Any], str, bool]:
    """Return prompt and images as a row of ours, the answer, and whether it is good."""
    mark = next((name for name in ("label", "kto_tag") if name in row), None)
    if mark is None or not isinstance(row[mark], bool):
        raise RowError("missing column", f"no label or kto_tag that is true or false; {proposal(row)}")
    kept = {name: row[name] for name in (*_IMAGES, *_OTHERS) if row.get(name)}
    images = [kept.pop(name) for name in _IMAGES if name in kept]
    made = {**kept, **({"images": images[0]} if images else {})}
    if "completion" in row and "prompt" in row:
        return {**made, "prompt": row["prompt"]}, _answer(row["completion"], "completion"), row[mark]
    name = next((name for name in ("messages", "conversations") if name in row), None)
    if name is None:
        raise RowError("missing column", f"neither prompt and completion, messages nor conversations; {proposal(row)}")
    turns = as_list(row[name], name)
    if system := made.pop("system", None):
        turns = [{"role": "system", "content": system}, *turns]
    return {**made, "prompt": turns[:-1]}, _answer(turns[-1:], name), row[mark]


def _answer(value: Any, what: str) -> str:
    return as_text(value, what) if isinstance(value, str) else read_answer(read_turns(value, what), what)


def _content(value: Any) -> str:
    """Return what tells bytes, which JSON does not hold, from others."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
