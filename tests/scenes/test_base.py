"""The shipped base: it loads, it speaks the world's language, and it is as good as its card says."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from cwdpo.files import read_json
from cwdpo.models.processors import load_processor
from cwdpo.scenes import base_path
from cwdpo.scenes.drawing import render
from cwdpo.scenes.grammar import PROMPT, caption_words, is_correct, sample_caption
from cwdpo.scenes.scene_rows import sample_scenes

MESSAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(base_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(base_path()).eval()


def test_a_few_megabytes() -> None:
    sizes = [file.stat().st_size for file in base_path().iterdir()]
    assert sum(sizes) < 6e6


def test_the_vocabulary_is_the_world(processor: Any) -> None:
    tokenizer = processor.tokenizer
    assert isinstance(processor, Qwen2_5_VLProcessor)
    unknown = tokenizer.unk_token_id
    words = [*caption_words(), "system", "user", "assistant"]
    ids = tokenizer.convert_tokens_to_ids(words)
    assert unknown not in ids
    assert len(tokenizer) == len(words) + 8
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("a mauve circle")["input_ids"][1] == unknown


def test_captions_survive_the_tokenizer(processor: Any) -> None:
    rng = random.Random(0)
    for scene in itertools.islice(sample_scenes("test", seed=1), 50):
        text = sample_caption(scene, rng).text
        ids = processor.tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert processor.decode(ids, skip_special_tokens=True) == text


def test_the_template(processor: Any) -> None:
    text = processor.apply_chat_template([MESSAGE], add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>describe the picture .<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    answered = processor.apply_chat_template([MESSAGE, {"role": "assistant", "content": "a b"}], tokenize=False)
    assert answered == text + "a b<|im_end|>\n"
    picture = render(next(sample_scenes("test", seed=1)))
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    # 64 / 8 = 8 patches a side, 64 / 4 image tokens; besides <|im_start|> user <|vision_start|> <|vision_end|>
    # describe the picture . <|im_end|> <|im_start|> assistant
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert inputs["mm_token_type_ids"].sum() == 16
    assert inputs["input_ids"].shape == (1, 16 + 11)


def test_it_is_as_good_as_its_card_says(processor: Any, model: Any) -> None:
    card = read_json(base_path() / "base_card.json")
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["test"]["pictures"] >= 500
    assert 0.45 <= card["test"]["right"] <= 0.65
    logps = card["test"]["logp_per_token"]
    assert logps["gold"] > logps["hard"] > logps["medium"] > logps["easy"]

    scenes = list(itertools.islice(sample_scenes("test", seed=99), 200))
    text = processor.apply_chat_template([MESSAGE], add_generation_prompt=True, tokenize=False)
    pictures = [np.asarray(render(scene)) for scene in scenes]
    inputs = processor(images=pictures, text=[text] * len(scenes), return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    captions = processor.tokenizer.batch_decode(out, skip_special_tokens=True)
    right = np.mean([is_correct(caption, scene) for caption, scene in zip(captions, scenes, strict=True)])
    # 200 pictures: a standard deviation of .035; four of them either way.
    assert abs(right - card["test"]["right"]) < 0.14
