"""A language model says which of two captions is better, asked in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.requests import Conversation, Reply, UnusableAnswer, json_request
from cwdpo.data.schema import PromptGroup
from cwdpo.recipe import JudgeSection

__all__ = ["Opinion", "judge_captions", "read_opinion"]

Opinion = Literal["1", "2", "tie"]

_TASK = (
    "You compare two captions of a picture. The better one says what is in the picture rightly: objects, their "
    "attributes, their number, where they are and what they do. What is wrong counts more than what is left out, and "
    "what is left out more than style. Length by itself is no merit. The order of the captions means nothing. Answer "
    'with JSON only: {"better": "1"}, {"better": "2"}, or {"better": "tie"} where neither is better.'
)


def judge_captions(
    model: LanguageModel[JudgeSection],
    groups: Sequence[PromptGroup],
    references: Sequence[Sequence[str]],
    pairs: Sequence[tuple[str, str]],
) -> list[Opinion | None]:
    """Return which caption of each pair is better: the first, the second, neither, or nothing readable.

    Args:
        model: The judge.
        groups: The images.
        references: Gold captions of each.
        pairs: Two captions of each, in the order in which they are shown.

    Raises:
        ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
    """
    asked = zip(groups, references, pairs, strict=True)
    return model.ask("judge", [_compared(model.settings, *each) for each in asked])


def _compared(
    judge: JudgeSection, group: PromptGroup, references: Sequence[str], pair: tuple[str, str]
) -> Conversation[Opinion | None]:
    lines = [f"Caption 1: {pair[0]}", f"Caption 2: {pair[1]}", "What people wrote of the picture:"]
    text = "\n".join([*lines, *(f"- {reference}" for reference in references)])
    properties = {"better": {"type": "string", "enum": ["1", "2", "tie"]}}
    return read_opinion((yield json_request(judge, _TASK, text, properties, group.images, expected=12)))


def read_opinion(reply: Reply) -> Opinion | None:
    """Return which caption an answer says is better, or None if it does not say so in JSON."""
    try:
        better = str(reply.json().get("better")).lower()
    except UnusableAnswer:
        return None
    return better if better in ("1", "2", "tie") else None
