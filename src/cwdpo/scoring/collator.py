"""Prompt groups to token ids and pixels: the collator. Images are decoded here, in the DataLoader's workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cwdpo.data.images import ImageLimits, open_image
from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.errors import DataError, ModelError, one_line
from cwdpo.files import text_digest
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse

__all__ = ["GroupCollator", "PromptEncoder"]

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
_MARK = "RESPONSEMARK"


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
        self._lead, self._end = self._turn_frame()
        self._signature = text_digest(
            json.dumps(
                _plain(getattr(getattr(self.processor, "image_processor", None), "to_dict", dict)()), sort_keys=True
            )
        )

    def prompt_text(self, messages: Sequence[Any]) -> str:
        """Return the prompt as one string, up to where the answer starts."""
        if self._has_template:
            return self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        token = getattr(self.processor, "image_token", "")
        return "".join(token if part["type"] == "image" else part["text"] for m in messages for part in _parts(m))

    def _turn_frame(self) -> tuple[str, str]:
        """Return what the template writes before an answer, and after it up to the end-of-turn token."""
        eos = self.tokenizer.eos_token or ""
        if not self._has_template:
            return "", eos
        user = {"role": "user", "content": [{"type": "text", "text": "x"}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": _MARK}]}
        prompt = self.prompt_text([user])
        whole = self.processor.apply_chat_template([user, answer], tokenize=False, add_generation_prompt=False)
        if not whole.startswith(prompt) or _MARK not in whole[len(prompt) :]:
            return "", eos
        lead, trail = whole[len(prompt) :].split(_MARK, 1)
        for token_id in self.tokenizer(trail, add_special_tokens=False)["input_ids"]:
            token: str = self.tokenizer.convert_ids_to_tokens(token_id)
            if token_id in self.tokenizer.all_special_ids and token in trail:
                return lead, trail[: trail.index(token) + len(token)]
        return lead, eos

    def response_ids(self, prompt: str, text: str) -> tuple[int, ...]:
        """Return the answer's token ids as they continue the prompt: a joint tokenisation, cut at the prompt.

        Without a chat template the processor itself ends the prompt (PaliGemma writes a new line), and the answer is
        tokenised alone.
        """
        answer = self._lead + text + (self._end if self.include_eos else "")
        tail = prompt[-64:] if self._has_template else ""
        before: list[int] = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        joint: list[int] = self.tokenizer(tail + answer, add_special_tokens=False)["input_ids"]
        if joint[: len(before)] == before:
            return tuple(joint[len(before) :])
        return tuple(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def prompt_inputs(self, groups: Sequence[PromptGroup], **kwargs: Any) -> Any:
        """Run the processor on the prompts of several groups (for generation: pass `padding=True`)."""
        texts = [self.prompt_text(g.messages) for g in groups]
        images = [[open_image(ref, self.limits) for ref in g.images] for g in groups]
        bos = self.tokenizer.bos_token
        special = not (bos and texts[0].startswith(bos))
        try:
            inputs = self.processor(
                text=texts,
                images=images if any(images) else None,
                return_tensors="pt",
                add_special_tokens=special,
                **kwargs,
            )
        except (ValueError, IndexError, TypeError, KeyError, StopIteration) as error:
            where = groups[0].origin or groups[0].id
            raise DataError(
                f"{where}: the processor cannot encode this prompt and its {len(images[0])} image(s): {one_line(error)}"
            ) from error
        inputs.pop("labels", None)  # PaliGemma's processor makes some of every prompt
        return inputs

    def encode(self, group: PromptGroup) -> EncodedGroup:
        """Encode one group.

        Raises:
            DataError: An image cannot be read, a response has no token, or the row is longer than `max_length`.
        """
        where = group.origin or group.id
        places = sum(part["type"] == "image" for message in group.messages for part in _parts(message))
        if places != len(group.images):
            raise DataError(f"{where}: {places} image(s) in the prompt's text but {len(group.images)} image file(s)")
        text = self.prompt_text(group.messages)
        inputs = dict(self.prompt_inputs([group]))
        prefix = tuple(inputs.pop("input_ids")[0].tolist())
        inputs.pop("attention_mask", None)
        types = {name: tuple(inputs.pop(name)[0].tolist()) for name in _TOKEN_TYPES if name in inputs}
        images = [image.digest() for image in group.images]
        context = text_digest(self._signature, json.dumps(prefix), *images)
        responses: list[EncodedResponse] = []
        for response in group.responses:
            ids = self.response_ids(text, response.text)
            if not ids:
                raise DataError(f"{where}: a {response.role} response has no token; give it some text")
            if getattr(self.processor, "image_token_id", None) in ids:
                raise DataError(f"{where}: a {response.role} response holds the image placeholder; take it out")
            key = text_digest(context, json.dumps(ids))
            responses.append(EncodedResponse(ids, response.role, response.source, response.difficulty, key))
        longest = len(prefix) + max((len(r.ids) for r in responses), default=0)
        if self.max_length is not None and longest > self.max_length:
            raise DataError(
                f"{where}: needs {longest} tokens ({len(prefix)} of prompt and image), the limit is {self.max_length}; "
                "image tokens are never cut: raise model.max_length, lower model.max_pixels, or leave the row out"
            )
        image_key = text_digest(self._signature, *images) if images else ""
        altered = any(image.altered is not None for image in group.images)
        references = group.references or tuple(r.text for r in group.by_role(CHOSEN))
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
