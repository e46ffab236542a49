"""Processors without torchvision: what is loaded, what is saved, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from cwdpo.errors import ModelError
from cwdpo.models.processors import image_only, load_processor

QWEN = [Qwen2VLProcessor, Qwen2_5_VLProcessor, Qwen3VLProcessor]
TOKENS = [
    *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    *("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"),
]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *TOKENS, "a", "red", "circle"])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", extra_special_tokens=TOKENS
    )


def save_qwen(folder: Path, stock: type) -> Any:
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=256, max_pixels=4096)
    processor = image_only(stock)(images, tiny_tokenizer(), chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    return processor


def picture(width: int = 32, height: int = 48) -> Image.Image:
    return Image.fromarray(np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3))


def call(processor: Any, token: str = "<|image_pad|>") -> Any:
    return processor(images=[picture()], text=[f"a {token} red circle"], return_tensors="pt")


@pytest.mark.parametrize("stock", QWEN)
def test_qwen_round_trip(tmp_path: Path, stock: type) -> None:
    saved = save_qwen(tmp_path, stock)
    loaded = load_processor(tmp_path)
    assert isinstance(loaded, stock)
    assert type(loaded).__name__ == stock.__name__
    assert loaded.chat_template == TEMPLATE
    first, second = call(saved), call(loaded)
    # 48 x 32 pixels are 6 x 4 patches of 8, and 3 x 2 = 6 image tokens after merging 2 x 2.
    assert second["image_grid_thw"].tolist() == [[1, 6, 4]]
    assert second["pixel_values"].shape == (24, 3 * 2 * 8 * 8)
    image = loaded.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (second["input_ids"] == image).sum() == 6
    # a, six image tokens, red, circle
    assert second["mm_token_type_ids"].tolist() == [[0, 1, 1, 1, 1, 1, 1, 0, 0]]
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize("stock", QWEN)
def test_saving_again_writes_the_same_bytes(tmp_path: Path, stock: type) -> None:
    save_qwen(tmp_path / "one", stock)
    load_processor(tmp_path / "one").save_pretrained(tmp_path / "two")
    # tokenizer_config.json is left out: transformers adds what it learnt on loading (is_local).
    for name in ("processor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_saved_names_are_the_stock_ones(tmp_path: Path) -> None:
    save_qwen(tmp_path, Qwen3VLProcessor)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["processor_class"] == "Qwen3VLProcessor"
    assert config["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
    assert config["video_processor"] == {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "patch_size": 8,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["processor_class"] == "Qwen3VLProcessor"


def test_video_settings_of_a_stock_directory_survive(tmp_path: Path) -> None:
    save_qwen(tmp_path / "stock", Qwen2_5_VLProcessor)
    path = tmp_path / "stock" / "processor_config.json"
    config = json.loads(path.read_text())
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 8, "fps": 3.5, "max_frames": 77}
    path.write_text(json.dumps(config | {"video_processor": video}))
    load_processor(tmp_path / "stock").save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "processor_config.json").read_text())["video_processor"] == video


def test_directory_of_older_transformers(tmp_path: Path) -> None:
    """Before transformers 5 the parts lay in files of their own, with no processor_config.json."""
    save_qwen(tmp_path, Qwen2_5_VLProcessor)
    path = tmp_path / "processor_config.json"
    parts = json.loads(path.read_text())
    path.unlink()
    old = parts["image_processor"] | {"processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 3.5}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
    loaded: Any = load_processor(tmp_path)
    assert isinstance(loaded, Qwen2_5_VLProcessor)
    assert loaded.image_processor.patch_size == 8
    assert loaded.to_dict()["video_processor"] == video


def test_class_is_found_by_model_type_alone(tmp_path: Path) -> None:
    save_qwen(tmp_path, Qwen2_5_VLProcessor)
    for name in ("processor_config.json", "tokenizer_config.json"):
        config = json.loads((tmp_path / name).read_text())
        del config["processor_class"]
        (tmp_path / name).write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    assert isinstance(load_processor(tmp_path), Qwen2_5_VLProcessor)


def test_pixel_bounds(tmp_path: Path) -> None:
    save_qwen(tmp_path / "one", Qwen2_5_VLProcessor)
    loaded: Any = load_processor(tmp_path / "one", max_pixels=512)
    # 48 x 32 = 1536 pixels must come below 512 in multiples of 16: 16 x 16, one image token.
    assert call(loaded)["image_grid_thw"].tolist() == [[1, 2, 2]]
    loaded.save_pretrained(tmp_path / "two")
    again: Any = load_processor(tmp_path / "two", min_pixels=300)
    assert dict(again.image_processor.size) == {"shortest_edge": 300, "longest_edge": 512}
    with pytest.raises(ModelError, match="min_pixels 600 and max_pixels 512 leave no image size"):
        load_processor(tmp_path / "two", min_pixels=600)


def save_llava(folder: Path) -> None:
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(images, tiny_tokenizer(), patch_size=8, vision_feature_select_strategy="full").save_pretrained(
        folder
    )


def test_llava_is_the_stock_class(tmp_path: Path) -> None:
    save_llava(tmp_path)
    loaded = load_processor(tmp_path)
    assert type(loaded) is LlavaProcessor
    out = call(loaded, "<image>")
    assert out["pixel_values"].shape == (1, 3, 16, 16)
    # 2 x 2 patches
    assert (out["input_ids"] == loaded.tokenizer.convert_tokens_to_ids("<image>")).sum() == 4
    with pytest.raises(ModelError, match="has no pixel bounds"):
        load_processor(tmp_path, max_pixels=512)


def test_smolvlm_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    stock = image_only(SmolVLMProcessor)
    stock(images, tiny_tokenizer(), video_processor=None, image_seq_len=4).save_pretrained(tmp_path)
    loaded: Any = load_processor(tmp_path)
    assert isinstance(loaded, SmolVLMProcessor)
    assert loaded.image_seq_len == 4
    out = call(loaded, "<image>")
    assert (out["input_ids"] == loaded.tokenizer.convert_tokens_to_ids("<image>")).sum() == 4
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ModelError, match="pip install num2words"):
        load_processor(tmp_path)


def test_a_bare_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"found only a Tokenizers?Backend, no processor"):
        load_processor(tmp_path / "bare")
    save_qwen(tmp_path / "half", Qwen2_5_VLProcessor)
    (tmp_path / "half" / "processor_config.json").unlink()
    with pytest.raises(ModelError):
        load_processor(tmp_path / "half")
