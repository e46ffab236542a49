"""Minimal edits by a language model: one fact of the chosen response changed, checked before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError

from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.requests import Conversation, Reply, UnusableAnswer, guess_tokens, json_request, until_usable
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import one_line
from cwdpo.negatives.llm_rewrites import require_change
from cwdpo.negatives.source import Candidate, Source, SourceContext, gold_texts, seeded
from cwdpo.negatives.text import normalise
from cwdpo.recipe.endpoint_sections import EditorSection

__all__ = ["Edit", "EditSource", "read_edit"]

KINDS = ("object", "attribute", "relation", "count", "action")

_TASK = (
    "You turn a right image caption into a wrong one. Change exactly one fact of the kind asked for, so that the "
    "caption becomes false of the picture but stays fluent and plausible. Change as few words as you can and keep all "
    "others as they are. A synonym, a more general or a more specific word is no change: the caption must become "
    'false. Answer with JSON only: {"caption": "the wrong caption", "changed": "the kind"}, the kind being one of '
    f"{', '.join(KINDS)}. Where the caption states no fact of the kind asked for, change one of another kind."
)
_PROPERTIES = {"caption": {"type": "string"}, "changed": {"type": "string", "enum": list(KINDS)}}


class Edit(BaseModel):
    """The answer that is asked for."""

    caption: str = Field(min_length=1, max_length=4000)
    changed: Literal["object", "attribute", "relation", "count", "action"]


def read_edit(reply: Reply) -> Edit:
    """Return the edit in an answer.

    Raises:
        UnusableAnswer: There is none.
    """
    try:
        edit = Edit.model_validate(reply.json())
    except ValidationError as error:
        first = error.errors()[0]
        raise UnusableAnswer(one_line(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 160)) from None
    return edit.model_copy(update={"caption": " ".join(edit.caption.split())})


class EditSource(Source):
    """The chosen response with one fact changed by a language model (`negatives.editor`)."""

    name: ClassVar[str] = "edit"
    costly: ClassVar[bool] = True
    needs_editor: ClassVar[bool] = True
    order: ClassVar[int] = 6

    def propose(
        self, groups: Sequence[PromptGroup], wanted: Mapping[str, int], context: SourceContext
    ) -> Mapping[str, Sequence[Candidate]]:
        """Return as many edits of each chosen response as are wanted; unusable ones with their problem.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        told: dict[str, Any] = {"note": context.note, "progress": context.progress}
        model = LanguageModel(context.editor, context.folder / "edit.jsonl", **told)
        tasks = [(group, *task) for group in groups for task in _tasks(group, wanted[group.id], context.seed)]
        edits = iter(model.ask(self.name, [_edited(*task, context.editor) for task in tasks]))
        return {group.id: [next(edits) for _ in range(wanted[group.id])] for group in groups}


def _tasks(group: PromptGroup, count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Yield the kind of fact of each edit, and how many edits of that kind came before it."""
    kinds = seeded(seed, group.id, "edit").sample(KINDS, len(KINDS))
    yield from ((kinds[i % len(kinds)], i // len(kinds)) for i in range(count))


def _edited(group: PromptGroup, kind: str, number: int, editor: EditorSection) -> Conversation[Candidate]:
    chosen, golds = group.chosen.text, gold_texts(group)
    most = min(editor.max_changes, max(2, len(normalise(chosen).split()) // 2))

    def read(reply: Reply) -> Candidate:
        edit = read_edit(reply)
        require_change(edit.caption, chosen, most=most, unlike=golds)
        return Candidate(edit.caption, "hard", (edit.changed,))

    lines = [f"Caption: {chosen}", f"Kind: {kind}"]
    if others := [f"- {gold}" for gold in golds if gold != chosen]:
        lines += ["Other right captions of the picture; the wrong one must be false by these too:", *others]
    asked: dict[str, Any] = {"expected": guess_tokens(chosen) + 20, "salt": str(number)}
    request = json_request(editor, _TASK, "\n".join(lines), _PROPERTIES, group.images, **asked)
    try:
        return (yield from until_usable(request, read, editor.rewrites))
    except UnusableAnswer as error:
        return Candidate(error.text, problem=f"unusable edit: {error}")
