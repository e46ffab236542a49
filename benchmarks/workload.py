"""What the benchmarks run on: Qwen2.5-VL of several sizes with random weights, and prompts of exact lengths."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.models.processors import image_only

PATCH, MERGE = 14, 2
SIDE = PATCH * MERGE
"""Pixels along one visual token."""

WORDS = 1000
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


@dataclass(frozen=True)
class Size:
    """A Qwen2.5-VL of a size. `SMALL` is what the tables in docs/performance.md are made with."""

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    vocabulary: int


def _text(hidden: int, layers: int, heads: int, kv: int, inner: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inner,
    }


def _vision(hidden: int, depth: int, heads: int, inner: int, full: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "depth": depth,
        "num_heads": heads,
        "intermediate_size": inner,
        "fullatt_block_indexes": full,
    }


TINY = Size("tiny", _text(64, 2, 4, 2, 96), _vision(32, 2, 2, 48, [1]), 1200)
SMALL = Size("small", _text(512, 8, 8, 4, 1408), _vision(256, 8, 8, 704, [3, 7]), 32_000)
QWEN_3B = Size("3B", _text(2048, 36, 16, 2, 11008), _vision(1280, 32, 16, 3420, [7, 15, 23, 31]), 151_936)
QWEN_7B = Size("7B", _text(3584, 28, 28, 4, 18944), _vision(1280, 32, 16, 3420, [7, 15, 23, 31]), 152_064)


def make_processor(max_tokens: int) -> Any:
    """A Qwen2.5-VL processor around a tokenizer of whole words: one word, one token."""
    names = [*SPECIAL, "<unk>", "user", "assistant", *(f"w{i}" for i in range(WORDS))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": SIDE * SIDE, "longest_edge": max_tokens * SIDE * SIDE},
    )
    return image_only(Qwen2_5_VLProcessor)(image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE)


def make_model(size: Size, processor: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A Qwen2.5-VL with random weights."""
    tokenizer = processor.tokenizer
    heads = size.text["hidden_size"] // size.text["num_attention_heads"]
    part = heads // 8
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [heads // 2 - 2 * (3 * part // 2), *[3 * part // 2] * 2],
    }
    config = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config={
            **size.text,
            "vocab_size": size.vocabulary,
            "rope_parameters": rope,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **size.vision,
            "out_hidden_size": size.text["hidden_size"],
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 4 * SIDE,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=WORDS + 20,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(previous)
    model.config.use_cache = False
    return model


def lora_config() -> Any:
    """Adapters of rank 16 on every linear layer of the language model; everything else is frozen."""
    from peft import LoraConfig

    projections = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    return LoraConfig(r=16, lora_alpha=32, target_modules=projections)


def picture(visual_tokens: int, seed: int = 0) -> Image.Image:
    """Random pixels that become so many visual tokens (rounded to a rectangle)."""
    rows = max(n for n in range(1, int(visual_tokens**0.5) + 1) if visual_tokens % n == 0)
    shape = (rows * SIDE, visual_tokens // rows * SIDE, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def make_rows(
    count: int, visual_tokens: int, response_tokens: int, responses: int = 2, prompt_tokens: int = 20
) -> list[dict[str, Any]]:
    """Rows with TRL's columns; every response has exactly `response_tokens` tokens, the end-of-turn token included.

    `rejected` holds the second response; further ones are in `more`.
    """
    chance = random.Random(count)

    def words(n: int) -> str:
        return " ".join(f"w{chance.randrange(WORDS)}" for _ in range(n))

    frame = 8  # tokens of the template around the question and the image
    found: list[dict[str, Any]] = []
    for row in range(count):
        answers = [
            [{"role": "assistant", "content": [{"type": "text", "text": words(response_tokens - 1)}]}]
            for _ in range(responses)
        ]
        found.append(
            {
                "images": [picture(visual_tokens, row)],
                "prompt": [user_message(words(max(1, prompt_tokens - frame)))],
                "chosen": answers[0],
                "rejected": answers[1] if responses > 1 else answers[0],
                "more": answers[2:],
            }
        )
    return found


def groups_of(rows: list[dict[str, Any]], responses: int | None = None) -> list[PromptGroup]:
    """The same rows as prompt groups, with the first `responses` of their answers."""

    def text(answer: Any) -> str:
        return answer[0]["content"][0]["text"]

    groups: list[PromptGroup] = []
    for i, row in enumerate(rows):
        answers = [text(a) for a in (row["chosen"], row["rejected"], *row["more"])][:responses]
        groups.append(
            PromptGroup(
                id=f"row-{i}",
                images=tuple(ImageRef(picture=image) for image in row["images"]),
                messages=tuple(row["prompt"]),
                responses=tuple(
                    Response(answer, role="rejected" if k else "chosen", difficulty="hard" if k else None)
                    for k, answer in enumerate(answers)
                ),
                origin=f"row {i}",
            )
        )
    return groups
