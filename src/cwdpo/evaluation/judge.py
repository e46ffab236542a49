"""A language model says which of two captions is better, asked in both orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.messages import Conversation, Reply, UnusableAnswer, json_request, read_json
from cwdpo.data.schema import PromptGroup
from cwdpo.recipe import JudgeSection

__all__ = ["CaptionJudge", "Opinion", "read_opinion"]

Opinion = Literal["1", "2", "tie"]

_TASK = (
    "You compare two captions of a picture. The better one says what is in the picture rightly: objects, their "
    "attributes, their number, where they are and what they do. What is wrong counts more than what is left out, and "
    "what is left out more than style. Length by itself is no merit. The order of the captions means nothing. Answer "
    'with JSON only: {"better": "1"}, {"better": "2"}, or {"better": "tie"} where neither is better.'
)
_SCHEMA = ("verdict", {"better": {"type": "string", "enum": ["1", "2", "tie"]}})


def read_opinion(reply: Reply) -> Opinion | None:
    """Return which caption an answer says is better, or None if it does not say so in JSON."""
    try:
        better = str(read_json(reply).get("better")).lower()
    except UnusableAnswer:
        return None
    return better if better in ("1", "2", "tie") else None


class CaptionJudge:
    """Compares captions in pairs; answers are kept.

    Args:
        settings: The endpoint, prices and cap.
        path: JSON-lines file where answers are kept.
        note: Told what is about to be asked, and its price.
        progress: Called with answers so far and their number.
    """

    def __init__(
        self,
        settings: JudgeSection,
        path: Path,
        *,
        note: Callable[[str], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._model = LanguageModel(settings, path, note=note, progress=progress)

    @property
    def spent(self) -> float:
        """Cost of all answers in the file."""
        return self._model.spent

    def opinions(
        self, groups: Sequence[PromptGroup], references: Sequence[Sequence[str]], pairs: Sequence[tuple[str, str]]
    ) -> list[Opinion | None]:
        """Return which caption of each pair is better: the first, the second, neither, or nothing readable.

        Args:
            groups: The images.
            references: Gold captions of each.
            pairs: Two captions of each, in the order in which they are shown.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        asked = zip(groups, references, pairs, strict=True)
        return self._model.ask("judge", [self._compared(*each) for each in asked])

    def _compared(
        self, group: PromptGroup, references: Sequence[str], pair: tuple[str, str]
    ) -> Conversation[Opinion | None]:
        lines = [f"Caption 1: {pair[0]}", f"Caption 2: {pair[1]}", "What people wrote of the picture:"]
        lines += [f"- {text}" for text in references]
        reply = yield json_request(self._settings, _TASK, "\n".join(lines), _SCHEMA, images=group.images, expected=12)
        return read_opinion(reply)
