"""Responses rewritten for probes, or corrected, by a language model; checked before they are used."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cwdpo.chat.answer_cache import TextCache
from cwdpo.chat.budget import Budget
from cwdpo.chat.client import ChatClient, Reply, guess_request, guess_tokens, structured_request, with_pictures
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import one_line
from cwdpo.files import text_digest
from cwdpo.negatives.candidates import gold_texts
from cwdpo.negatives.rule_rewrites import REWRITES, source_text
from cwdpo.negatives.text import edit_distance, normalise, words
from cwdpo.recipe import EditorSection

__all__ = ["Rewriter", "rewrite_problem"]

_TASKS = {
    "paraphrase": (
        "You say an image caption in other words. The meaning stays exactly the same: no fact is added, left out or "
        "changed, and the length stays about the same."
    ),
    "form": (
        "You write a caption of another picture in the form of the caption given: the same kind of sentence, built the "
        "same way and about as long, but about other things. Exchange every object, attribute, number and relation."
    ),
    "correction": (
        "You correct an image caption. You are given right captions of the same picture. Change as few words as you "
        "can so that the caption says nothing false, and keep all others as they are. Where nothing is false, repeat "
        "the caption as it is."
    ),
}
_ANSWER = ' Answer with JSON only: {"caption": "the new caption"}.'
_SCHEMA: dict[str, Any] = {
    "name": "rewrite",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"caption": {"type": "string"}},
        "required": ["caption"],
        "additionalProperties": False,
    },
}
_KEPT = 0.7
"""Share of its words that another caption of the same form may have in common with the one given."""


def rewrite_problem(new: str, old: str, golds: Sequence[str], how: str) -> str | None:
    """Return why a text is no rewrite of another, or None. Whether the meaning is right is not seen from here.

    Args:
        new: What the model wrote.
        old: The response that it was to rewrite.
        golds: The right responses of the prompt.
        how: `paraphrase`, `form` or `correction`.
    """
    one, other = words(old), words(new)
    if not other:
        return "the caption has no words"
    if one == other:
        return None if how == "correction" else "nothing was changed"
    if not 0.5 <= len(other) / max(1, len(one)) <= 2:
        return f"the caption has {len(other)} words instead of {len(one)}"
    if how == "correction" and (changes := edit_distance(one, other)) > max(2, len(one) // 2):
        return f"{changes} of {len(one)} words were changed"
    if how == "form" and normalise(new) in {normalise(gold) for gold in golds}:
        return "the caption is right of the same picture"
    if how == "form" and edit_distance(one, other) < (1 - _KEPT) * len(one):
        return "the caption is about the same things"
    return None


class Rewriter:
    """Rewrites responses through an OpenAI-compatible endpoint.

    Every answer is kept in `folder/rewrites.jsonl` as it comes, by the content of its request: what was answered
    is not asked again.

    Args:
        settings: The endpoint.
        folder: Where answers are kept.
        note: Told what is about to be asked.
        pause: First pause before a failed request is sent again, in seconds.
    """

    def __init__(
        self, settings: EditorSection, folder: Path, note: Callable[[str], None] | None = None, pause: float = 1.0
    ) -> None:
        self._settings, self._note, self._pause = settings, note, pause
        self._cache, self._budget = TextCache(folder / "rewrites.jsonl"), Budget(settings)
        for row in self._cache.values():
            self._budget.count(Reply(*row))
        self._lock = threading.Lock()

    def rewrite(self, groups: Sequence[PromptGroup], kind: str) -> dict[str, str]:
        """Return rewritten responses by prompt id; a prompt whose answers could not be used has none.

        Args:
            groups: Prompts with their responses.
            kind: A key of `REWRITES`.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        tasks = [(group, text) for group in groups if (text := source_text(group, kind)) is not None]
        return self._ask_all(kind, REWRITES[kind][1], tasks)

    def correct(self, groups: Sequence[PromptGroup], answers: Mapping[str, str]) -> dict[str, str]:
        """Return answers by prompt id with what is false in them put right, judged by the chosen responses.

        An answer in which nothing is false comes back as it is; one whose corrections could not be used has none.

        Args:
            groups: Prompts with their chosen responses.
            answers: By prompt id, what is to be corrected.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        return self._ask_all("correction", "correction", [(g, answers[g.id]) for g in groups if g.id in answers])

    def _ask_all(self, label: str, how: str, tasks: Sequence[tuple[PromptGroup, str]]) -> dict[str, str]:
        s = self._settings
        bodies = [self._body(how, group, text, []) for group, text in tasks]
        new = [body for body in bodies if _key(body) not in self._cache]
        if new:
            sent = sum(guess_request(body) for body in new)
            received = sum(guess_tokens(text) + 20 for _, text in tasks)
            self._budget.require(self._budget.cost(sent, received), len(new))
            if self._note is not None:
                self._note(
                    f"{label}: {len(new)} requests to {s.model} at {s.base_url}, about {sent + received:,} tokens"
                )
        client = ChatClient(s, [s.base_url], "negatives.editor", pause=self._pause)
        pool = ThreadPoolExecutor(s.concurrency, thread_name_prefix="rewrite")
        try:
            texts = list(pool.map(lambda task: self._follow(client, how, *task), tasks))
        finally:
            client.stop()
            pool.shutdown(wait=True, cancel_futures=True)  # answers under way still come in and are kept
            client.close()
        return {group.id: text for (group, _), text in zip(tasks, texts, strict=True) if text is not None}

    def _follow(self, client: ChatClient, how: str, group: PromptGroup, text: str) -> str | None:
        """Go through the exchange of one rewrite, from what is kept as far as it goes."""
        turns: list[dict[str, Any]] = []
        for _ in range(self._settings.rewrites + 1):
            reply = self._answer(client, group, self._body(how, group, text, turns))
            new = _caption(reply)
            problem = new if isinstance(new, _Unread) else rewrite_problem(new, text, gold_texts(group), how)
            if problem is None:
                assert isinstance(new, str)
                return new
            turns += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": f"That cannot be used: {problem}. Try again; JSON only."},
            ]
        return None

    def _answer(self, client: ChatClient, group: PromptGroup, body: dict[str, Any]) -> Reply:
        key = _key(body)
        if key not in self._cache:
            with self._budget.reserved(self._budget.cost(guess_request(body), self._settings.max_tokens)):
                shown = "images" in body["messages"][1]
                reply = client.ask(with_pictures(body, group.images) if shown else body)
                self._budget.count(reply)
                with self._lock:
                    if key not in self._cache:  # two prompts with the same response may have asked at once
                        self._cache.add({key: [reply.text, reply.sent, reply.received, reply.whole]})
        return Reply(*self._cache[key])

    def _body(self, how: str, group: PromptGroup, text: str, turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the request, pictures by their digest: its content is the key under which the answer is kept."""
        first: dict[str, Any] = {"role": "user", "content": f"Caption: {text}"}
        if how == "correction":
            right = [f"- {gold}" for gold in gold_texts(group)]
            first["content"] = "\n".join((first["content"], "Right captions of the picture:", *right))
            if self._settings.images:
                first["images"] = [image.digest() for image in group.images]
        system = {"role": "system", "content": _TASKS[how] + _ANSWER}
        return structured_request(self._settings, [system, first, *turns], _SCHEMA)


class _Unread(str):
    """What is wrong with an answer."""

    __slots__ = ()


def _caption(reply: Reply) -> str:
    """Return the caption that an answer holds, or what is wrong with it (an `_Unread`)."""
    start = reply.text.find("{")
    if not reply.whole or start < 0:
        return _Unread("the answer holds no JSON" if reply.whole else "the answer was cut short")
    try:
        value, _ = json.JSONDecoder().raw_decode(reply.text[start:])
    except (ValueError, RecursionError):
        return _Unread("the answer holds no whole JSON")
    text = value.get("caption") if isinstance(value, dict) else None
    return one_line(text, 4000) if isinstance(text, str) else _Unread("the answer has no text under caption")


def _key(body: Mapping[str, Any]) -> str:
    return text_digest(json.dumps(body, sort_keys=True))
