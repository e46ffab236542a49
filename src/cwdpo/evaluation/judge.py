"""A language model says which of two captions is better, asked in both orders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from cwdpo.chat.answer_cache import TextCache
from cwdpo.chat.budget import Budget
from cwdpo.chat.client import ChatClient, Reply, guess_request, structured_request, with_pictures
from cwdpo.data.schema import PromptGroup
from cwdpo.files import text_digest
from cwdpo.recipe import JudgeSection

__all__ = ["Judge", "Opinion", "read_opinion"]

Opinion = Literal["1", "2", "tie"]

_TASK = (
    "You compare two captions of a picture. The better one says what is in the picture rightly: objects, their "
    "attributes, their number, where they are and what they do. What is wrong counts more than what is left out, and "
    "what is left out more than style. Length by itself is no merit. The order of the captions means nothing. Answer "
    'with JSON only: {"better": "1"}, {"better": "2"}, or {"better": "tie"} where neither is better.'
)
_SCHEMA: dict[str, Any] = {
    "name": "verdict",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"better": {"type": "string", "enum": ["1", "2", "tie"]}},
        "required": ["better"],
        "additionalProperties": False,
    },
}
_ANSWER_TOKENS = 12


def read_opinion(text: str) -> Opinion | None:
    """Return which caption an answer says is better, or None where no JSON says so. Text around it is passed over."""
    start = text.find("{")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else (None, 0)
    except (ValueError, RecursionError):
        return None
    better = str(value.get("better")).lower() if isinstance(value, dict) else ""
    return better if better in ("1", "2", "tie") else None


class Judge:
    """Asks about pairs of captions. Every answer is kept as it comes, by the content of its request.

    Args:
        settings: The endpoint, prices and cap.
        path: JSON-lines file where answers are kept.
        note: Told what is about to be asked, and what it will cost.
        progress: Called with answers had and their number.
        pause: First pause before a failed request is sent again, in seconds.
    """

    def __init__(
        self,
        settings: JudgeSection,
        path: Path,
        *,
        note: Callable[[str], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        pause: float = 1.0,
    ) -> None:
        self._settings, self._note, self._progress, self._pause = settings, note, progress, pause
        self._cache, self._budget = TextCache(path), Budget(settings)
        for kept in self._cache.values():
            self._budget.count(Reply(*kept))

    @property
    def spent(self) -> float:
        """What all answers that are kept have cost."""
        return self._budget.spent

    def opinions(
        self, groups: Sequence[PromptGroup], references: Sequence[Sequence[str]], pairs: Sequence[tuple[str, str]]
    ) -> list[Opinion | None]:
        """Return which caption of each pair is better: the first, the second, neither, or nothing readable.

        Args:
            groups: The pictures.
            references: Gold captions of each.
            pairs: Two captions of each, in the order that they are shown.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        bodies = [self._body(*asked) for asked in zip(groups, references, pairs, strict=True)]
        keys = [text_digest(json.dumps(body, sort_keys=True)) for body in bodies]
        waiting = {key: i for i, key in enumerate(keys) if key not in self._cache}
        if waiting:
            self._announce([bodies[i] for i in waiting.values()])
            self._ask_all([(key, bodies[i], groups[i]) for key, i in waiting.items()], len(set(keys)))
        return [read_opinion(self._cache[key][0]) for key in keys]

    def _announce(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        sent, received = sum(map(guess_request, bodies)), _ANSWER_TOKENS * len(bodies)
        cost = self._budget.cost(sent, received)
        if self._note is not None:
            price = f", about {cost:.4g} at the prices given" if cost else ""
            spent = f" ({self.spent:.4g} spent before)" if self.spent else ""
            s = self._settings
            self._note(
                f"judge: {len(bodies)} requests to {s.model} at {s.base_url}, about {sent + received:,} tokens"
                f"{price}{spent}"
            )
        self._budget.require(cost, len(bodies))

    def _ask_all(self, tasks: Sequence[tuple[str, dict[str, Any], PromptGroup]], total: int) -> None:
        s = self._settings
        refused = " (structured: json_object or none, for servers without schemas)"
        client = ChatClient(s, [s.base_url], s.place, refused=refused, pause=self._pause)
        pool = ThreadPoolExecutor(s.concurrency, thread_name_prefix="judge")
        try:
            futures = [pool.submit(self._ask, client, *task) for task in tasks]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if self._progress is not None:
                    self._progress(total - len(tasks) + done, total)
        finally:
            client.stop()
            pool.shutdown(wait=True, cancel_futures=True)  # answers under way still come in and are kept
            client.close()

    def _ask(self, client: ChatClient, key: str, body: dict[str, Any], group: PromptGroup) -> None:
        with self._budget.reserved(self._budget.cost(guess_request(body), self._settings.max_tokens)):
            reply = client.ask(with_pictures(body, group.images) if self._settings.images else body)
            self._budget.count(reply)
            self._cache.add({key: [reply.text, reply.sent, reply.received, reply.whole]})

    def _body(self, group: PromptGroup, references: Sequence[str], pair: tuple[str, str]) -> dict[str, Any]:
        """Return the request, images by their digest: its content is the key under which the answer is kept."""
        lines = [f"Caption 1: {pair[0]}", f"Caption 2: {pair[1]}", "What people wrote of the picture:"]
        lines += [f"- {text}" for text in references]
        first: dict[str, Any] = {"role": "user", "content": "\n".join(lines)}
        if self._settings.images:
            first["images"] = [image.digest() for image in group.images]
        return structured_request(self._settings, [{"role": "system", "content": _TASK}, first], _SCHEMA)
