"""Prompt groups to token ids and pixels: the collator. Images are decoded here, in the DataLoader's workers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cwdpo.data.images import ImageLimits, open_image
from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.errors import DataError, ModelError, one_line
from cwdpo.files import text_digest
from cwdpo.scoring.agreement import ERRORS
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse

__all__ = ["GroupCollator", "PromptEncoder"]

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
_MARK = "RESPONSEMARK"
_WITHOUT_TEMPLATE = ("PaliGemmaProcessor",)
"""Processors of models that were never given a chat template: the prompt is its text behind its pictures."""
_STANDS_FOR_MEDIA = re.compile("image|video|audio|vision|boi|eoi")
"""Names under which processors and tokenizers know tokens that stand for a picture, or enclose one."""


@dataclass
class PromptEncoder:
    """Turns a prompt group into token ids and pixels, as the model's own chat template writes it.

    Attributes:
        processor: The model's processor (tokenizer, image processor, chat template).
        include_eos: The end-of-turn token is part of the response.
        max_length: Longest prompt + response, in tokens; None sets no limit. Nothing is ever cut.
        limits: Which images are refused.
    """

    processor: Any
    include_eos: bool = True
    max_length: int | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self._has_template = getattr(self.processor, "chat_template", None) is not None
        if not self._has_template and type(self.processor).__name__ not in _WITHOUT_TEMPLATE:
            raise ModelError(
                f"{self._name}: the processor has no chat template; copy chat_template.jinja (or "
                "processor_config.json) of the original model into the folder, or write one if it never had one"
            )
        self._takes_strings: set[str] = set()
        self._opening, self._trail, self._end = self._frame()
        self._placeholders = self._media_tokens()
        self._signature = text_digest(
            json.dumps(
                _plain(getattr(getattr(self.processor, "image_processor", None), "to_dict", dict)()), sort_keys=True
            )
        )

    @property
    def _name(self) -> str:
        return getattr(self.tokenizer, "name_or_path", "") or type(self.processor).__name__

    def _render(self, messages: Sequence[Any], *, opens: bool) -> str:
        """Return what the template makes of a conversation; with `opens` also what begins the next answer."""
        told = [
            {**m, "content": "".join(part["text"] for part in _parts(m))}
            if m["role"] in self._takes_strings and all(part["type"] == "text" for part in _parts(m))
            else m
            for m in messages
        ]
        return self.processor.apply_chat_template(told, tokenize=False, add_generation_prompt=opens)

    def _writes(self, messages: Sequence[Any]) -> bool:
        """Whether the template writes the marked text of a conversation as it is."""
        try:
            text = self._render(messages, opens=False)
        except Exception:  # whatever a template raises
            return False
        return _MARK in text and not re.search(rf"['\"]{_MARK}['\"]", text)

    def _frame(self) -> tuple[str, str, str]:
        """Return what of a prompt's end is written for answers that are still to come only, and what ends an answer.

        Returns:
            The end of a prompt that no finished conversation has (`<think>` of some templates), what the template
            writes behind an answer, and as much of that as the answer is trained on: up to the end-of-turn token.

        Raises:
            ModelError: The template fails, or writes no answer.
        """
        eos = self.tokenizer.eos_token or ""
        if not self._has_template:
            return "", "", eos
        user, answer = _turn("user", "x"), _turn("assistant", _MARK)
        for role, asked in (
            ("user", [_turn("user", _MARK)]),
            ("system", [_turn("system", _MARK), user]),
            ("assistant", [user, answer]),
        ):
            if not self._writes(asked):
                self._takes_strings.add(role)
                if not self._writes(asked):
                    self._takes_strings.discard(role)
        try:
            prompt, whole = self._render([user], opens=True), self._render([user, answer], opens=False)
        except Exception as error:
            raise ModelError(f"{self._name}: the chat template fails: {one_line(error, 160)}") from error
        if _MARK not in whole:
            raise ModelError(f"{self._name}: the chat template does not write what the assistant says; use another")
        before, trail = whole.rsplit(_MARK, 1)
        same = next(
            (i for i, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), min(len(prompt), len(before))
        )
        # Elsewhere than at the prompt's end, cut where a token surely ends: behind a space, a line, a bracket.
        shared = prompt[:same] if before.startswith(prompt) else re.sub(r"[^\s>\]]+\Z", "", prompt[:same])
        end, added = eos, getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {*self.tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        for token_id in self.tokenizer(trail, add_special_tokens=False)["input_ids"]:
            token: str = self.tokenizer.convert_ids_to_tokens(token_id)
            if token_id in special and token in trail:
                end = trail[: trail.index(token) + len(token)]
                break
        if not end and self.include_eos:
            raise ModelError(
                f"{self._name}: no token is known that ends an answer; copy tokenizer_config.json of the original "
                "model into the folder"
            )
        return prompt[len(shared) :], trail, end

    def _media_tokens(self) -> list[str]:
        """Return the tokens that stand for pictures, or enclose them: nobody's text may hold them."""
        named = (*getattr(self.tokenizer, "special_tokens_map", {}).items(), *vars(self.processor).items())
        tokens = {str(value) for name, value in named if _STANDS_FOR_MEDIA.search(name)}
        return sorted(tokens & set(self.tokenizer.get_added_vocab()))

    def _require_no_media_token(self, where: str, what: str, text: str) -> None:
        for token in self._placeholders:
            if token in text:
                raise DataError(f"{where}: {what} holds the image placeholder {token}; take it out")

    def _text(self, group: PromptGroup, answer: str | None = None) -> str:
        """Return a prompt as one string, up to where the answer starts, or with an answer.

        Raises:
            DataError: The template refuses the conversation.
        """
        if not self._has_template:
            token = getattr(self.processor, "image_token", "")
            parts = (part for m in group.messages for part in _parts(m))
            return "".join(token if part["type"] == "image" else part["text"] for part in parts)
        turns = [] if answer is None else [_turn("assistant", answer)]
        try:
            return self._render([*group.messages, *turns], opens=answer is None)
        except Exception as error:
            raise DataError(
                f"{group.origin or group.id}: the chat template refuses this conversation: {one_line(error, 160)}"
            ) from error

    def _answer_text(self, group: PromptGroup, prompt: str, answer: str) -> str:
        """Return what is trained: the answer as the template writes it behind this prompt, with the end of the turn."""
        end = self._end if self.include_eos else ""
        if not self._has_template:
            return answer + end
        whole = self._text(group, answer)
        if not whole.startswith(prompt) or not whole.endswith(self._trail):
            raise DataError(
                f"{group.origin or group.id}: the chat template writes the conversation otherwise with the answer "
                f"{one_line(answer, 60)!r} than without it; change the row or the template"
            )
        return whole[len(prompt) : len(whole) - len(self._trail)] + end

    def _response_ids(self, prompt: str, answer: str) -> tuple[int, ...]:
        """Return the answer's token ids as they continue the prompt: a joint tokenisation, cut at the prompt.

        Without a chat template the processor itself ends the prompt (PaliGemma writes a new line), and the answer is
        tokenised alone.
        """
        tail = prompt[-64:] if self._has_template else ""
        before: list[int] = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        joint: list[int] = self.tokenizer(tail + answer, add_special_tokens=False)["input_ids"]
        if joint[: len(before)] == before:
            return tuple(joint[len(before) :])
        return tuple(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def prompt_inputs(self, groups: Sequence[PromptGroup], **kwargs: Any) -> Any:
        """Run the processor on the prompts of several groups (for generation: pass `padding=True`)."""
        return self._inputs(groups, [self._text(g) for g in groups], **kwargs)

    def _inputs(self, groups: Sequence[PromptGroup], texts: Sequence[str], **kwargs: Any) -> Any:
        images = [[open_image(ref, self.limits) for ref in g.images] for g in groups]
        bos = self.tokenizer.bos_token
        special = not (bos and texts[0].startswith(bos))
        try:
            inputs = self.processor(
                text=list(texts),
                images=images if any(images) else None,
                return_tensors="pt",
                add_special_tokens=special,
                **kwargs,
            )
        except (*ERRORS, StopIteration) as error:
            where = groups[0].origin or groups[0].id
            raise DataError(
                f"{where}: the processor cannot encode this prompt and its {len(images[0])} image(s): {one_line(error)}"
            ) from error
        inputs.pop("labels", None)  # PaliGemma's processor makes some of every prompt
        return inputs

    def _prompt_text(self, group: PromptGroup) -> str:
        """Return a prompt as the processor is given it."""
        where = group.origin or group.id
        places = sum(part["type"] == "image" for message in group.messages for part in _parts(message))
        if places != len(group.images):
            raise DataError(f"{where}: {places} image(s) in the prompt's text but {len(group.images)} image file(s)")
        for message in group.messages:
            self._require_no_media_token(where, "the prompt", "".join(p.get("text", "") for p in _parts(message)))
        return self._text(group).removesuffix(self._opening)

    def _answers(self, group: PromptGroup, text: str) -> list[tuple[int, ...]]:
        """Return the token ids of every response as it continues the prompt."""
        where = group.origin or group.id
        answers: list[tuple[int, ...]] = []
        for response in group.responses:
            self._require_no_media_token(where, f"a {response.role} response", response.text)
            answers.append(self._response_ids(text, self._answer_text(group, text, response.text)))
            if not answers[-1]:
                raise DataError(f"{where}: a {response.role} response has no token; give it some text")
        return answers

    def count_text(self, group: PromptGroup) -> tuple[int, int]:
        """Return the tokens of a prompt's text, its pictures as the template writes them, and of its longest response.

        Raises:
            DataError: As `encode`, as far as the text alone tells.
        """
        text = self._prompt_text(group)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(ids), max(map(len, self._answers(group, text)), default=0)

    def require_length(self, group: PromptGroup, prefix: int, response: int) -> None:
        """Refuse a row with more tokens than `max_length`.

        Args:
            group: The row.
            prefix: Tokens of prompt and images.
            response: Tokens of its longest response.

        Raises:
            DataError: It is too long.
        """
        if self.max_length is not None and prefix + response > self.max_length:
            raise DataError(
                f"{group.origin or group.id}: needs {prefix + response} tokens ({prefix} of prompt and image), the "
                f"limit is {self.max_length}; image tokens are never cut: raise model.max_length, lower "
                "model.max_pixels, or leave the row out"
            )

    def encode(self, group: PromptGroup) -> EncodedGroup:
        """Encode one group.

        Raises:
            DataError: An image cannot be read, the template refuses the conversation, a text holds a token that stands
                for a picture, a response has no token, or the row is longer than `max_length`.
        """
        text = self._prompt_text(group)
        inputs = dict(self._inputs([group], [text]))
        prefix = tuple(inputs.pop("input_ids")[0].tolist())
        inputs.pop("attention_mask", None)
        types = {name: tuple(inputs.pop(name)[0].tolist()) for name in _TOKEN_TYPES if name in inputs}
        images = [image.digest() for image in group.images]
        context = text_digest(self._signature, json.dumps(prefix), *images)
        answers = self._answers(group, text)
        self.require_length(group, len(prefix), max(map(len, answers), default=0))
        responses = [
            EncodedResponse(ids, r.role, r.source, r.difficulty, text_digest(context, json.dumps(ids)), r.score)
            for ids, r in zip(answers, group.responses, strict=True)
        ]
        image_key = text_digest(self._signature, *images) if images else ""
        altered = any(image.altered is not None for image in group.images)
        references = group.references or tuple(r.text for r in group.by_role(CHOSEN))
        where = group.origin or group.id
        return EncodedGroup(
            group.id, where, prefix, types, inputs, tuple(responses), image_key, altered, references, group.facts
        )


class GroupCollator:
    """A DataLoader's collate function: prompt groups to `{"batch": Batch}`.

    Args:
        encoder: The prompt encoder.
        twin: Gives each group a twin with altered images, put after all groups; None gives none.
    """

    def __init__(self, encoder: PromptEncoder, twin: Callable[[PromptGroup], PromptGroup] | None = None) -> None:
        self.encoder, self.twin = encoder, twin

    def __call__(self, groups: Sequence[PromptGroup]) -> dict[str, Batch]:
        """Encode the groups of one micro-batch."""
        twins = [self.twin(group) for group in groups] if self.twin is not None else []
        return {"batch": Batch(tuple(self.encoder.encode(group) for group in (*groups, *twins)))}


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _parts(message: Any) -> list[dict[str, str]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _plain(value: Any) -> Any:
    """Return `value` with everything that JSON does not know as its name."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if not str(k).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def require_template(processor: Any, where: str) -> None:
    """Refuse a processor that is only a tokenizer.

    Raises:
        ModelError: The processor has no image processor.
    """
    if getattr(processor, "image_processor", None) is None:
        raise ModelError(
            f"{where}: the processor has no image processor; a vision-language model's processor is needed"
        )
