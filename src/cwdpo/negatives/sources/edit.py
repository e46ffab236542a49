"""Minimal edits by a language model: one fact of the chosen response changed, checked before it is used."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from cwdpo.chat.answer_cache import TextCache
from cwdpo.chat.budget import Budget
from cwdpo.chat.client import ChatClient, Reply, guess_request, guess_tokens, structured_request, with_pictures
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import one_line
from cwdpo.files import text_digest
from cwdpo.negatives.candidates import Candidate, gold_texts, seeded
from cwdpo.negatives.text import edit_distance, normalise, words
from cwdpo.recipe import EditorSection

__all__ = ["Edit", "EditSource", "edit_problem", "read_edit"]

KINDS = ("object", "attribute", "relation", "count", "action")

_TASK = (
    "You turn a right image caption into a wrong one. Change exactly one fact of the kind asked for, so that the "
    "caption becomes false of the picture but stays fluent and plausible. Change as few words as you can and keep all "
    "others as they are. A synonym, a more general or a more specific word is no change: the caption must become "
    'false. Answer with JSON only: {"caption": "the wrong caption", "changed": "the kind"}, the kind being one of '
    f"{', '.join(KINDS)}. Where the caption states no fact of the kind asked for, change one of another kind."
)
_REFUSED = " (structured: json_object or none, for servers without schemas)"


class Edit(BaseModel):
    """The answer that is asked for."""

    caption: str = Field(min_length=1, max_length=4000)
    changed: Literal["object", "attribute", "relation", "count", "action"]


_SCHEMA: dict[str, Any] = {
    "name": "edit",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"caption": {"type": "string"}, "changed": {"type": "string", "enum": list(KINDS)}},
        "required": ["caption", "changed"],
        "additionalProperties": False,
    },
}


def read_edit(reply: Reply) -> Edit | str:
    """Return the edit that an answer holds, or what is wrong with it. Text around the JSON is passed over."""
    if not reply.whole:
        return "the answer was cut short"
    text = reply.text
    start = text.find("{")
    if start < 0:
        return "the answer holds no JSON"
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
    except (ValueError, RecursionError):
        return "the answer holds no whole JSON"
    try:
        edit = Edit.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        return one_line(f"{'.'.join(map(str, first['loc'])) or 'the answer'}: {first['msg']}", 160)
    return edit.model_copy(update={"caption": " ".join(edit.caption.split())})


def edit_problem(edit: Edit, chosen: str, golds: Sequence[str], max_changes: int) -> str | None:
    """Return why an edit is no small wrong change of `chosen`, or None.

    Args:
        edit: What the model wrote.
        chosen: The right caption that it was to change.
        golds: All right captions of the picture.
        max_changes: Most words inserted, deleted or exchanged; half of those of `chosen` where that is less (but 2).
    """
    new, old = words(edit.caption), words(chosen)
    if not new:
        return "the caption has no words"
    if new == old:
        return "nothing was changed"
    if normalise(edit.caption) in {normalise(gold) for gold in golds}:
        return "the caption equals another right one"
    if not 0.5 <= len(new) / max(1, len(old)) <= 2:
        return f"the caption has {len(new)} words instead of {len(old)}"
    changes = edit_distance(old, new)
    most = min(max_changes, max(2, len(old) // 2))
    if changes > most:
        return f"{changes} words were changed, at most {most} may be"
    return None


@dataclass(frozen=True)
class _Task:
    """One edit to ask for."""

    group: PromptGroup
    kind: str
    number: int


class EditSource:
    """One fact of the chosen response changed by a language model.

    Every answer is kept in `folder/edit.jsonl` as it comes, by the content of its request: nothing that was answered is
    asked again, except what was under way when the process was killed.

    Args:
        settings: The endpoint.
        seed: Fixes which kind of fact is asked for.
        folder: Where answers are kept.
        progress: Called with edits done and their number.
        note: Told the estimate before anything is asked.
        pause: First pause before a failed request is sent again, in seconds.
    """

    name = "edit"
    costly = True

    def __init__(
        self,
        settings: EditorSection,
        *,
        seed: int,
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
        note: Callable[[str], None] | None = None,
        pause: float = 1.0,
    ) -> None:
        self._settings, self._seed, self._pause = settings, seed, pause
        self._progress, self._note = progress, note
        self._cache = TextCache(folder / "edit.jsonl")
        self._budget = Budget(settings)
        for kept in self._cache.values():
            self._budget.count(_reply(kept))
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return as many edits of each chosen response as are wanted; those that cannot be used with their problem.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        tasks = [task for group in groups for task in self._tasks(group, wanted[group.id])]
        done: dict[_TaskKey, Candidate] = {}
        waiting: list[_Task] = []
        for task in tasks:
            found = self._follow(task, None)
            if found is None:
                waiting.append(task)
            else:
                done[_key(task)] = found
        if waiting:
            self._announce(waiting)
            done |= self._ask_all(waiting, len(done), len(tasks))
        found_by_row: dict[str, list[Candidate]] = {group.id: [] for group in groups}
        for task in tasks:
            found_by_row[task.group.id].append(done[_key(task)])
        return found_by_row

    def _tasks(self, group: PromptGroup, count: int) -> Iterator[_Task]:
        kinds = seeded(self._seed, group.id, "edit").sample(KINDS, len(KINDS))
        yield from (_Task(group, kinds[i % len(kinds)], i // len(kinds)) for i in range(count))

    def _announce(self, waiting: Sequence[_Task]) -> None:
        """Say what is about to be asked and what it will cost, and stop where that is too much."""
        sent = sum(guess_request(self._body(task, [])) for task in waiting)
        received = sum(guess_tokens(task.group.chosen.text) + 20 for task in waiting)
        cost = self._budget.cost(sent, received)
        if self._note is not None:
            price = f", about {cost:.4g} at the prices given" if cost else ""
            spent = f" ({self._budget.spent:.4g} spent before)" if self._budget.spent else ""
            self._note(
                f"edit: {len(waiting)} requests to {self._settings.model} at {self._settings.base_url}, "
                f"about {sent + received:,} tokens{price}{spent}"
            )
        self._budget.require(cost, len(waiting))

    def _ask_all(self, waiting: Sequence[_Task], before: int, total: int) -> dict[_TaskKey, Candidate]:
        s = self._settings
        client = ChatClient(s, [s.base_url], "negatives.editor", refused=_REFUSED, pause=self._pause)
        found: dict[_TaskKey, Candidate] = {}
        pool = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="edit")
        try:
            futures = {pool.submit(self._follow, task, client): task for task in waiting}
            for future in as_completed(futures):
                answer = future.result()
                assert answer is not None
                found[_key(futures[future])] = answer
                if self._progress is not None:
                    self._progress(before + len(found), total)
        finally:
            client.stop()
            pool.shutdown(wait=True, cancel_futures=True)  # answers under way still come in and are kept
            client.close()
        return found

    def _follow(self, task: _Task, client: ChatClient | None) -> Candidate | None:
        """Go through the exchange of one edit: from what is kept, then by asking; None where that takes a client."""
        group, chosen = task.group, task.group.chosen.text
        turns: list[dict[str, Any]] = []
        problem, text = "", ""
        for _ in range(self._settings.rewrites + 1):
            body = self._body(task, turns)
            key = text_digest(json.dumps(body, sort_keys=True), str(task.number))
            if key not in self._cache:
                if client is None:
                    return None
                self._ask(client, body, key, group)
            reply = _reply(self._cache[key])
            edit = read_edit(reply)
            if isinstance(edit, Edit):
                found = edit_problem(edit, chosen, gold_texts(group), self._settings.max_changes)
                if found is None:
                    return Candidate(edit.caption, self.name, "hard", (edit.changed,))
                problem, text = found, edit.caption
            else:
                problem, text = edit, text or one_line(reply.text, 200)
            turns += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": f"That cannot be used: {problem}. Try again; JSON only."},
            ]
        return Candidate(text, self.name, problem=f"unusable edit: {problem}")

    def _ask(self, client: ChatClient, body: dict[str, Any], key: str, group: PromptGroup) -> None:
        """Ask for one answer and keep it. Rows with the same content wait for one another."""
        with self._lock:
            asking = self._asking.setdefault(key, threading.Lock())
        with asking:
            if key in self._cache:
                return
            with self._budget.reserved(self._budget.cost(guess_request(body), self._settings.max_tokens)):
                reply = client.ask(with_pictures(body, group.images) if self._settings.images else body)
                self._budget.count(reply)
                row = {"id": group.id, "reply": reply.text, "usage": [reply.sent, reply.received], "whole": reply.whole}
                self._cache.add({key: row})

    def _body(self, task: _Task, turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the request, images by their digest: its content is the key under which the answer is kept."""
        s, group = self._settings, task.group
        others = [gold for gold in gold_texts(group) if gold != group.chosen.text]
        lines = [f"Caption: {group.chosen.text}", f"Kind: {task.kind}"]
        if others:
            lines.append("Other right captions of the picture; the wrong one must be false by these too:")
            lines += [f"- {other}" for other in others]
        first: dict[str, Any] = {"role": "user", "content": "\n".join(lines)}
        if s.images:
            first["images"] = [image.digest() for image in group.images]
        return structured_request(s, [{"role": "system", "content": _TASK}, first, *turns], _SCHEMA)


_TaskKey = tuple[str, str, int]


def _key(task: _Task) -> _TaskKey:
    return task.group.id, task.kind, task.number


def _reply(row: Mapping[str, Any]) -> Reply:
    sent, received = row["usage"]
    return Reply(row["reply"], sent, received, row["whole"])
