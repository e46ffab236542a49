"""Texts that the policy writes: by transformers in this run's processes, or by servers of the same model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cwdpo.chat.answer_cache import TextCache
from cwdpo.chat.client import ServiceError
from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.requests import Conversation, Request
from cwdpo.data.schema import PromptGroup
from cwdpo.files import text_digest
from cwdpo.negatives.source import Candidate, Source, SourceContext

if TYPE_CHECKING:
    from cwdpo.negatives.generating_model import NegativePolicy

__all__ = ["PolicySource", "write_texts"]


class PolicySource(Source):
    """A source that the model in training writes; texts are kept in `folder/<name>.jsonl`."""

    costly: ClassVar[bool] = True
    on_policy: ClassVar[bool] = True

    def copies(self, most: int) -> int:
        """Return how many texts a prompt is given, if up to `most` of them are to become negatives."""
        raise NotImplementedError

    @property
    def sampling(self) -> dict[str, Any] | None:
        """Settings of the sampling; None for a beam search."""
        return None

    def propose(
        self, groups: Sequence[PromptGroup], wanted: Mapping[str, int], context: SourceContext
    ) -> Mapping[str, Sequence[Candidate]]:
        """Return what the model says to each prompt; texts that are kept are not generated again.

        Raises:
            ServiceError: A server cannot be used; what was answered is kept.
        """
        mix, copies = context.mix, self.copies(context.mix.most)
        if mix.generator.base_urls:
            told: dict[str, Any] = {"note": context.note, "progress": context.progress}
            model = LanguageModel(mix.generator, context.folder / f"{self.name}.jsonl", **told)
            answers = model.ask(self.name, [self._served(group, copies, context) for group in groups])
            texts = {group.id: said for group, said in zip(groups, answers, strict=True)}
        else:
            how = {"num_beams": copies} if self.sampling is None else self.sampling
            texts = write_texts(
                self.name,
                groups,
                {"max_new_tokens": mix.max_new_tokens, "num_return_sequences": copies, **how},
                seed="" if self.sampling is None else str(context.seed),
                folder=context.folder,
                policy=context.policy,
                batch_size=mix.batch_size,
                progress=context.progress,
            )
        return {name: [Candidate(text) for text in dict.fromkeys(said)] for name, said in texts.items()}

    def _served(self, group: PromptGroup, copies: int, context: SourceContext) -> Conversation[list[str]]:
        """Ask for the texts of one prompt; a server that gives one sample per request is asked several times."""
        mix, digest, texts = context.mix, context.policy.digest, list[str]()
        how = {"use_beam_search": True, "temperature": 0.0} if self.sampling is None else self.sampling
        while (left := copies - len(texts)) > 0:
            fields = {"model": mix.generator.model, "max_tokens": mix.max_new_tokens, "n": left, **how}
            if self.sampling is not None:
                salt = text_digest(digest, str(context.seed), _prompt_digest(group), str(len(texts)))
                fields["seed"] = int(salt[:7], 16)
            expected = left * mix.max_new_tokens
            reply = yield Request(fields, group.messages, group.images, False, expected=expected, salt=digest)
            texts += [text.strip() for text in (reply.text, *reply.more)]
            if self.sampling is None and len(texts) < copies:
                raise ServiceError(
                    f"generator {mix.generator.model}: {len(texts)} of {copies} hypotheses came back; the server does "
                    "no beam search (vLLM does): use sample in place of beam"
                )
        return texts[:copies]


def write_texts(
    name: str,
    groups: Sequence[PromptGroup],
    settings: Mapping[str, Any],
    *,
    seed: str,
    folder: Path,
    policy: NegativePolicy,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[str]]:
    """Return what the policy says to each prompt, by row id.

    Texts are kept by (prompt, images, policy, settings), a batch at a time: a killed run repeats the batch in flight
    and nothing else, and ends with the same texts.

    Args:
        name: Name of the file.
        groups: The prompts.
        settings: Arguments of `generate`.
        seed: Tells runs with another seed apart; empty where it makes no difference.
        folder: Where texts are kept.
        policy: The model.
        batch_size: Prompts generated at once.
        progress: Called with prompts done and their number.
    """
    from cwdpo.negatives.generating_model import PolicyJob, has_images
    from cwdpo.processes import processes

    cache, fixed = TextCache(folder / f"{name}.jsonl"), json.dumps(settings, sort_keys=True)
    keys = {g.id: text_digest(policy.digest, name, fixed, seed, _prompt_digest(g)) for g in groups}
    by_key = {keys[g.id]: g for g in groups}
    todo = [key for key in by_key if key not in cache]
    done = len(by_key) - len(todo)
    parts = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
    jobs = [
        PolicyJob([by_key[key] for key in part], {**settings, "seed": int(text_digest(*part)[:12], 16)})
        for part in parts
    ]
    for part, texts in zip(parts, processes().map("generate", jobs, policy.write, has_images), strict=True):
        cache.add({key: {"id": by_key[key].id, "texts": said} for key, said in zip(part, texts, strict=True)})
        done += len(part)
        if progress is not None:
            progress(done, len(by_key))
    return {identity: cache[key]["texts"] for identity, key in keys.items()}


def _prompt_digest(group: PromptGroup) -> str:
    return text_digest(json.dumps([dict(m) for m in group.messages]), *(image.digest() for image in group.images))
