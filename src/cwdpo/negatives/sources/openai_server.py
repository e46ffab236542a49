"""On-policy negatives written by servers in place of transformers: the same texts are asked for, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from cwdpo.chat.answer_cache import TextCache
from cwdpo.chat.client import ChatClient, ServiceError, image_part
from cwdpo.data.schema import PromptGroup
from cwdpo.files import text_digest
from cwdpo.negatives.candidates import Candidate
from cwdpo.negatives.sources.on_policy import prompt_digest
from cwdpo.recipe import SourceMix

__all__ = ["ServedSource"]


class ServedSource:
    """Hypotheses of a beam search, or samples, from OpenAI-compatible servers that take images.

    Every answer is kept in `folder/<name>.jsonl` as it comes: nothing that was answered is asked again, except what was
    under way when the process was killed.

    Args:
        name: `beam` or `sample`.
        mix: Settings, the servers among them.
        seed: Fixes the sampling, as far as the servers heed it.
        folder: Where texts are kept.
        digest: Content of the model that the servers are to serve.
        progress: Called with prompts done and their number.
        note: Told who is about to be asked.
        pause: First pause before a failed request is sent again, in seconds.
    """

    costly = True

    def __init__(
        self,
        name: Literal["beam", "sample"],
        mix: SourceMix,
        *,
        seed: int,
        folder: Path,
        digest: str,
        progress: Callable[[int, int], None] | None = None,
        note: Callable[[str], None] | None = None,
        pause: float = 1.0,
    ) -> None:
        self.name = name
        self._servers, self._digest, self._seed, self._pause = mix.generator, digest, seed, pause
        self._progress, self._note = progress, note
        self._cache = TextCache(folder / f"{name}.jsonl")
        ways: dict[str, dict[str, Any]] = {
            "beam": {"n": max(mix.beam_width, mix.most), "use_beam_search": True, "temperature": 0.0},
            "sample": {"n": 2 * mix.most + 2, "temperature": mix.temperature, "top_p": mix.top_p},
        }
        self._settings: dict[str, Any] = {"model": mix.generator.model, "max_tokens": mix.max_new_tokens, **ways[name]}

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return what the servers answer to each prompt, asking what is not kept yet.

        Raises:
            ServiceError: A server cannot be used; what was answered is kept.
        """
        keys = {group.id: self._key(group) for group in groups}
        by_key = {keys[g.id]: g for g in groups}
        todo = [key for key in by_key if key not in self._cache]
        if todo:
            s = self._servers
            if self._note is not None:
                self._note(f"{self.name}: {len(todo)} prompts to {s.model} at {', '.join(s.base_urls)}")
            client = ChatClient(s, s.base_urls, "generator", pause=self._pause)
            pool = ThreadPoolExecutor(s.concurrency, thread_name_prefix=self.name)
            try:
                futures = [pool.submit(self._ask, client, by_key[key], key) for key in todo]
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    if self._progress is not None:
                        self._progress(len(by_key) - len(todo) + done, len(by_key))
            finally:
                client.stop()
                pool.shutdown(wait=True, cancel_futures=True)  # answers under way still come in and are kept
                client.close()
        return {
            identity: [Candidate(text, self.name) for text in dict.fromkeys(self._cache[key]["texts"])]
            for identity, key in keys.items()
        }

    def _key(self, group: PromptGroup) -> str:
        seed = str(self._seed) if self.name == "sample" else ""
        settings = json.dumps(self._settings, sort_keys=True)
        return text_digest(self._digest, "served", self.name, settings, seed, prompt_digest(group))

    def _ask(self, client: ChatClient, group: PromptGroup, key: str) -> None:
        """Ask for one prompt's texts and keep them. A server that gives one sample a request is asked several times."""
        messages, texts, count = _messages(group), list[str](), int(self._settings["n"])
        while len(texts) < count:
            body = {**self._settings, "messages": messages}
            if self.name == "sample":
                body |= {"n": count - len(texts), "seed": int(text_digest(key, str(len(texts)))[:7], 16)}
            reply = client.ask(body)
            texts += [reply.text.strip(), *(text.strip() for text in reply.more)]
            if self.name == "beam" and len(texts) < count:
                raise ServiceError(
                    f"generator {self._servers.model}: {len(texts)} of {count} hypotheses came back; the server "
                    "does no beam search (vLLM does): use sample in place of beam"
                )
        self._cache.add({key: {"id": group.id, "texts": texts[:count]}})


def _messages(group: PromptGroup) -> list[dict[str, Any]]:
    """Return the conversation with the pictures in it."""
    pictures = iter(group.images)
    found: list[dict[str, Any]] = []
    for message in group.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [image_part(next(pictures)) if part["type"] == "image" else dict(part) for part in content]
        found.append({**message, "content": content})
    return found
