"""Responses rewritten for probes, or corrected, by a language model; checked before they are used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.requests import Conversation, Reply, UnusableAnswer, guess_tokens, json_request, until_usable
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import one_line
from cwdpo.negatives.rule_rewrites import REWRITES, source_text
from cwdpo.negatives.source import gold_texts
from cwdpo.negatives.text import edit_distance, normalise
from cwdpo.recipe import EditorSection

__all__ = ["correct_by_llm", "require_change", "rewrite_by_llm"]

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
_OTHER = 0.3
"""Smallest fraction of its words that a caption of another picture must change."""


def require_change(
    new: str, old: str, *, fewest: float = 1, most: float = math.inf, unlike: Sequence[str] = ()
) -> None:
    """Refuse a text that does not change another as it should. Whether its meaning is right cannot be checked here.

    Args:
        new: What the model wrote.
        old: What it was to change.
        fewest: Fewest words to be inserted, deleted or replaced.
        most: Most of them.
        unlike: Texts that it must not read like.

    Raises:
        UnusableAnswer: It has no words, is less than half or more than twice as long, or breaks one of these.
    """
    before, after = normalise(old).split(), normalise(new).split()
    changes = edit_distance(before, after)
    if not after:
        problem = "the caption has no words"
    elif fewest and not changes:
        problem = "nothing was changed"
    elif normalise(new) in map(normalise, unlike):
        problem = "the caption equals a right one"
    elif not 0.5 <= len(after) / max(1, len(before)) <= 2:
        problem = f"the caption has {len(after)} words instead of {len(before)}"
    elif changes > most:
        problem = f"{changes} words were changed, at most {most:g} may be"
    elif changes < fewest:
        problem = f"{changes} of {len(before)} words were changed, which is too few"
    else:
        return
    raise UnusableAnswer(problem, new)


def rewrite_by_llm(model: LanguageModel[EditorSection], groups: Sequence[PromptGroup], kind: str) -> dict[str, str]:
    """Return rewritten responses by prompt id; a prompt whose answers were unusable has none.

    Args:
        model: The language model.
        groups: Prompts with their responses.
        kind: A key of `REWRITES`.

    Raises:
        ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
    """
    texts = {group.id: source_text(group, kind) for group in groups}
    return _ask_all(
        model, kind, REWRITES[kind][1], groups, {key: text for key, text in texts.items() if text is not None}
    )


def correct_by_llm(
    model: LanguageModel[EditorSection], groups: Sequence[PromptGroup], answers: Mapping[str, str]
) -> dict[str, str]:
    """Return answers by prompt id with what is false in them corrected, judged by the chosen responses.

    An answer in which nothing is false is returned unchanged; one whose corrections were unusable has none.

    Args:
        model: The language model.
        groups: Prompts with their chosen responses.
        answers: What is to be corrected, by prompt id.

    Raises:
        ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
    """
    return _ask_all(model, "correction", "correction", groups, answers)


def _ask_all(
    model: LanguageModel[EditorSection], label: str, how: str, groups: Sequence[PromptGroup], texts: Mapping[str, str]
) -> dict[str, str]:
    asked = [group for group in groups if group.id in texts]
    answers = model.ask(label, [_rewritten(model.settings, how, group, texts[group.id]) for group in asked])
    return {group.id: text for group, text in zip(asked, answers, strict=True) if text is not None}


def _rewritten(editor: EditorSection, how: str, group: PromptGroup, text: str) -> Conversation[str | None]:
    golds, length = gold_texts(group), len(normalise(text).split())

    def read(reply: Reply) -> str:
        caption = reply.json().get("caption")
        if not isinstance(caption, str):
            raise UnusableAnswer("the answer has no text under caption")
        caption = one_line(caption, 4000)
        if how == "correction":
            require_change(caption, text, fewest=0, most=max(2, length // 2))
        elif how == "form":
            require_change(caption, text, fewest=_OTHER * length, unlike=golds)
        else:
            require_change(caption, text)
        return caption

    right = ["Right captions of the picture:", *(f"- {gold}" for gold in golds)] if how == "correction" else []
    asked, images = "\n".join([f"Caption: {text}", *right]), group.images if right else ()
    properties, expected = {"caption": {"type": "string"}}, guess_tokens(text) + 20
    request = json_request(editor, _TASKS[how] + _ANSWER, asked, properties, images, expected=expected)
    try:
        return (yield from until_usable(request, read, editor.rewrites))
    except UnusableAnswer:
        return None
