"""On-policy negatives written by servers in place of transformers: the same texts are asked for, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cwdpo.chat.client import ServiceError
from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.messages import Conversation, Request
from cwdpo.data.schema import PromptGroup
from cwdpo.files import text_digest
from cwdpo.negatives.candidates import Candidate
from cwdpo.negatives.sources.on_policy import prompt_digest
from cwdpo.recipe import SourceMix

__all__ = ["ServedSource"]


class ServedSource:
    """Hypotheses of a beam search, or samples, from OpenAI-compatible servers that take images.

    Args:
        name: `beam` or `sample`.
        mix: Settings, the servers among them.
        seed: Fixes the sampling, as far as the servers heed it.
        folder: Where answers are kept.
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
        self._digest, self._seed = digest, seed
        self._model = LanguageModel(mix.generator, folder / f"{name}.jsonl", note=note, progress=progress, pause=pause)
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
        answers = self._model.ask(self.name, [self._answers(group) for group in groups])
        return {
            group.id: [Candidate(text, self.name) for text in dict.fromkeys(texts)]
            for group, texts in zip(groups, answers, strict=True)
        }

    def _answers(self, group: PromptGroup) -> Conversation[list[str]]:
        """Ask for the texts of one prompt; a server that gives one sample a request is asked several times."""
        texts, count = list[str](), int(self._settings["n"])
        while len(texts) < count:
            settings, left = self._settings, count - len(texts)
            if self.name == "sample":
                salt = text_digest(self._digest, str(self._seed), prompt_digest(group), str(len(texts)))
                settings = {**settings, "n": left, "seed": int(salt[:7], 16)}
            expected = left * self._settings["max_tokens"]
            reply = yield Request(
                settings, group.messages, group.images, small_images=False, expected=expected, salt=self._digest
            )
            texts += [text.strip() for text in (reply.text, *reply.more)]
            if self.name == "beam" and len(texts) < count:
                raise ServiceError(
                    f"generator {settings['model']}: {len(texts)} of {count} hypotheses came back; the server "
                    "does no beam search (vLLM does): use sample in place of beam"
                )
        return texts[:count]
