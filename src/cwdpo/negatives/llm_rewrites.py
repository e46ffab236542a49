"""Responses rewritten for probes, or corrected, by a language model; checked before they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.messages import Conversation, Reply, UnusableAnswer, guess_tokens, json_request, read_json, until_usable
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import one_line
from cwdpo.negatives.rule_rewrites import REWRITES, source_text
from cwdpo.negatives.source import gold_texts
from cwdpo.negatives.text import edit_distance, normalise
from cwdpo.recipe import EditorSection

__all__ = ["LLMRewriter", "require_rewrite"]

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
_SCHEMA = ("rewrite", {"caption": {"type": "string"}})
_SHARED = 0.7
"""Largest fraction of its words that another caption of the same form may keep."""


def require_rewrite(new: str, old: str, golds: Sequence[str], how: str) -> None:
    """Refuse a text that is no rewrite of another. Whether its meaning is right cannot be checked here.

    Args:
        new: What the model wrote.
        old: The response that it was to rewrite.
        golds: The right responses of the prompt.
        how: `paraphrase`, `form` or `correction`.

    Raises:
        UnusableAnswer: It is none.
    """
    before, after = normalise(old).split(), normalise(new).split()
    changes = edit_distance(before, after)
    problem = ""
    if not after:
        problem = "the caption has no words"
    elif before == after:
        problem = "" if how == "correction" else "nothing was changed"
    elif not 0.5 <= len(after) / max(1, len(before)) <= 2:
        problem = f"the caption has {len(after)} words instead of {len(before)}"
    elif how == "correction" and changes > max(2, len(before) // 2):
        problem = f"{changes} of {len(before)} words were changed"
    elif how == "form" and normalise(new) in {normalise(gold) for gold in golds}:
        problem = "the caption is right of the same picture"
    elif how == "form" and changes < (1 - _SHARED) * len(before):
        problem = "the caption is about the same things"
    if problem:
        raise UnusableAnswer(problem)


class LLMRewriter:
    """Rewrites responses through an OpenAI-compatible endpoint; answers are kept in `folder/rewrites.jsonl`.

    Args:
        settings: The endpoint.
        folder: Where answers are kept.
        note: Told what is about to be asked.
    """

    def __init__(self, settings: EditorSection, folder: Path, note: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._model = LanguageModel(settings, folder / "rewrites.jsonl", note=note)

    def rewrite(self, groups: Sequence[PromptGroup], kind: str) -> dict[str, str]:
        """Return rewritten responses by prompt id; a prompt whose answers were unusable has none.

        Args:
            groups: Prompts with their responses.
            kind: A key of `REWRITES`.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        tasks = [(group, text) for group in groups if (text := source_text(group, kind)) is not None]
        return self._ask_all(kind, REWRITES[kind][1], tasks)

    def correct(self, groups: Sequence[PromptGroup], answers: Mapping[str, str]) -> dict[str, str]:
        """Return answers by prompt id with what is false in them corrected, judged by the chosen responses.

        An answer in which nothing is false is returned unchanged; one whose corrections were unusable has none.

        Args:
            groups: Prompts with their chosen responses.
            answers: What is to be corrected, by prompt id.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        return self._ask_all("correction", "correction", [(g, answers[g.id]) for g in groups if g.id in answers])

    def _ask_all(self, label: str, how: str, tasks: Sequence[tuple[PromptGroup, str]]) -> dict[str, str]:
        texts = self._model.ask(label, [self._rewritten(how, *task) for task in tasks])
        return {group.id: text for (group, _), text in zip(tasks, texts, strict=True) if text is not None}

    def _rewritten(self, how: str, group: PromptGroup, text: str) -> Conversation[str | None]:
        golds = gold_texts(group)

        def read(reply: Reply) -> str:
            caption = read_json(reply).get("caption")
            if not isinstance(caption, str):
                raise UnusableAnswer("the answer has no text under caption")
            require_rewrite(caption := one_line(caption, 4000), text, golds, how)
            return caption

        lines = [f"Caption: {text}"]
        if how == "correction":
            lines += ["Right captions of the picture:", *(f"- {gold}" for gold in golds)]
        images = group.images if how == "correction" else ()
        request = json_request(
            self._settings,
            _TASKS[how] + _ANSWER,
            "\n".join(lines),
            _SCHEMA,
            images=images,
            expected=guess_tokens(text) + 20,
        )
        try:
            return (yield from until_usable(request, read, self._settings.rewrites))
        except UnusableAnswer:
            return None
