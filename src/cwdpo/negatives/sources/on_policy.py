"""Negatives that the model itself writes: beam search (paper, D.1) and sampling."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cwdpo.chat.answer_cache import TextCache
from cwdpo.data.schema import PromptGroup
from cwdpo.files import text_digest
from cwdpo.negatives.candidates import Candidate
from cwdpo.negatives.generating_model import Asked, NegativePolicy, has_images
from cwdpo.processes import processes
from cwdpo.recipe import SourceMix

__all__ = ["OnPolicySource", "prompt_digest"]


def prompt_digest(group: PromptGroup) -> str:
    """Return the content of a prompt and its images."""
    return text_digest(json.dumps([dict(m) for m in group.messages]), *(image.digest() for image in group.images))


class OnPolicySource:
    """Hypotheses of a beam search, or samples.

    What was written is kept by (prompt, images, policy, settings) in `folder/<name>.jsonl`, a batch at a time: a killed
    run repeats the batch that was under way and nothing else, and ends with the same texts.

    Args:
        name: `beam` or `sample`.
        mix: Settings.
        seed: Fixes the sampling.
        folder: Where texts are kept.
        policy: The model.
        progress: Called with prompts done and their number.
        samples: How many of a prompt's; default some to spare, for those that are gold ones.
    """

    costly = True

    def __init__(
        self,
        name: Literal["beam", "sample"],
        mix: SourceMix,
        *,
        seed: int,
        folder: Path,
        policy: NegativePolicy,
        progress: Callable[[int, int], None] | None = None,
        samples: int | None = None,
    ) -> None:
        self.name = name
        self._policy, self._progress, self._seed = policy, progress, seed
        self._batch_size = mix.batch_size
        self._cache = TextCache(folder / f"{name}.jsonl")
        count = max(mix.beam_width, mix.most)
        ways: dict[str, dict[str, Any]] = {
            "beam": {"num_beams": count, "num_return_sequences": count},
            "sample": {
                "temperature": mix.temperature,
                "top_p": mix.top_p,
                "num_return_sequences": samples or 2 * mix.most + 2,
            },
        }
        self.settings = {"max_new_tokens": mix.max_new_tokens, **ways[name]}

    def _key(self, group: PromptGroup) -> str:
        seed = str(self._seed) if self.name == "sample" else ""
        settings = json.dumps(self.settings, sort_keys=True)
        return text_digest(self._policy.digest, self.name, settings, seed, prompt_digest(group))

    def propose(self, groups: Sequence[PromptGroup], wanted: Mapping[str, int]) -> Mapping[str, Sequence[Candidate]]:
        """Return what the model says to each prompt, generating what is not kept yet."""
        keys = {group.id: self._key(group) for group in groups}
        by_key = {keys[g.id]: g for g in groups}
        todo = [key for key in by_key if key not in self._cache]
        done = len(by_key) - len(todo)
        parts = [todo[start : start + self._batch_size] for start in range(0, len(todo), self._batch_size)]
        asked = [self._asked([by_key[key] for key in part], part) for part in parts]
        for part, texts in zip(parts, processes().map("generate", asked, self._policy.write, has_images), strict=True):
            self._cache.add(
                {key: {"id": by_key[key].id, "texts": found} for key, found in zip(part, texts, strict=True)}
            )
            done += len(part)
            if self._progress is not None:
                self._progress(done, len(by_key))
        return {
            identity: [Candidate(text, self.name) for text in dict.fromkeys(self._cache[key]["texts"])]
            for identity, key in keys.items()
        }

    def _asked(self, part: Sequence[PromptGroup], keys: Sequence[str]) -> Asked:
        return Asked(part, int(text_digest(*keys)[:12], 16), self.settings)
