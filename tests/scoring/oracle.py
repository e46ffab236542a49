"""The plainest way to score a response: one unpadded sequence through the model, `log_softmax` over all positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cwdpo.data.images import open_image
from cwdpo.data.schema import PromptGroup, Response
from cwdpo.scoring.collator import PromptEncoder
from tiny_models import end_of_answer


def image_counts(family: str, *counts: int) -> tuple[int, ...]:
    """The same counts where the family takes text-only rows, else at least one image a row."""
    return tuple(max(n, 1) for n in counts) if family == "paligemma" else counts


def whole_text(processor: Any, family: str, group: PromptGroup, response: Response) -> str:
    """Prompt and answer as the chat template writes them, cut after the end of the answer."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": response.text}]}
    text = processor.apply_chat_template([*group.messages, answer], tokenize=False)
    before, _, _ = text.rpartition(response.text)
    return before + response.text + end_of_answer(family)


def whole_inputs(processor: Any, family: str, group: PromptGroup, response: Response) -> dict[str, Tensor]:
    """What the processor makes of prompt, images and answer as one text."""
    images = [[open_image(ref) for ref in group.images]] if group.images else None
    if family == "paligemma":
        prompt = "<image>" * len(group.images) + group.messages[0]["content"][-1]["text"]
        inputs = processor(text=[prompt], images=images, suffix=[response.text], return_tensors="pt")
        del inputs["labels"]
        return inputs
    text = whole_text(processor, family, group, response)
    bos = processor.tokenizer.bos_token
    return processor(
        text=[text],
        images=images,
        return_tensors="pt",
        add_special_tokens=not (bos and text.startswith(bos)),
    )


def naive_logps(model: Any, processor: Any, family: str, group: PromptGroup) -> list[Tensor]:
    """`Float[tokens]` for every response of the group."""
    prefix = len(PromptEncoder(processor).encode(group).prefix_ids)
    found: list[Tensor] = []
    for response in group.responses:
        inputs = whole_inputs(processor, family, group, response)
        logits = model(**inputs).logits[0, prefix - 1 : -1].float()
        targets = inputs["input_ids"][0, prefix:]
        found.append(torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0])
    return found
