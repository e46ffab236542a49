"""Random-weight vision-language models of about 100k parameters, and prompt groups to feed them.

`tiny("qwen2_5_vl", folder)` saves model and processor as a user would have them on disk; `tiny_model` and
`tiny_processor` make them in memory. Every weight is drawn from a fixed seed, wide enough that positions, images and
tokens change log-probabilities by tenths of a nat.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
)

from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.models.processors import image_only

HYBRID = "qwen3_5"
"""A family whose first layer is linear attention, which no mask reaches."""

CROSS = "mllama"
"""A family that attends to pictures by cross-attention, and takes one sequence at a time."""

WORDS = (
    *("a", "red", "square", "above", "the", "blue", "circle", "left", "of", "two", "green", "triangles", "with"),
    *("small", "yellow", "star", "next", "to", "large", "dark", "line", "what", "is", "in", "this", "picture"),
    *("how", "many", "shapes", "are", "there", "describe", "image", "please", "?", ".", ","),
)

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_VICUNA = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_IDEFICS = (
    "BOS{% for m in messages %}{{ m['role'] | capitalize }}:{% if m['content'][0]['type'] != 'image' %} {% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_LLAMA = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_TOKENS = (*_CHATML_TOKENS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_IDEFICS_TOKENS = (
    "<|begin_of_text|>",
    "<|im_start|>",
    "<pad>",
    "<image>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),
)


def tiny(family: str, folder: Path) -> Path:
    """Save a tiny model of the family with its processor in `folder` and return it."""
    processor = tiny_processor(family)
    tiny_model(family, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_model(family: str, processor: Any = None, *, seed: int = 0, **changes: Any) -> Any:
    """Return a tiny model in evaluation mode.

    Args:
        family: A `config.model_type`: `FAMILIES`, `MORE_FAMILIES`, `HYBRID` or `CROSS`.
        processor: What `tiny_processor(family)` gives; made here where None.
        seed: Of the weights.
        **changes: To the text config (`num_hidden_layers=4`, …).
    """
    tokenizer = (processor or tiny_processor(family)).tokenizer
    config = _TABLE[family].config(tokenizer, changes)
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "gate" in name and weight.numel() == 1:
                weight.fill_(0.7)
            if weight.ndim > 1:
                wide = 0.7 if "embed" in name else (2.0 if "lm_head" in name else 1.2) / weight[0].numel() ** 0.5
                weight.normal_(0.0, wide)
    model.tie_weights()
    torch.random.set_rng_state(generator)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def tiny_processor(family: str) -> Any:
    """Return the family's processor around a byte-level tokenizer of some 400 tokens."""
    return _TABLE[family].processor()


def end_of_answer(family: str) -> str:
    """Return what ends an answer in the family's template."""
    return _TABLE[family].end


def sample_groups(
    n: int,
    folder: Path,
    *,
    responses: int | Sequence[int] = 2,
    images: int | Sequence[int] = (1, 2, 0),
    seed: int = 0,
) -> list[PromptGroup]:
    """Return `n` prompt groups with unequal prompts, responses and images (PNG files in `folder`).

    Args:
        n: How many.
        folder: Where the images go.
        responses: K for every group, or a cycle of them; the first is chosen, the rest are rejected.
        images: Images of a prompt, or a cycle of them; 0 is a text-only row.
        seed: Of words, lengths and pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    counts = [responses] if isinstance(responses, int) else list(responses)
    pictures = [images] if isinstance(images, int) else list(images)
    groups: list[PromptGroup] = []
    for row in range(n):
        refs = tuple(
            tiny_image(folder / f"{seed}-{row}-{i}.png", chance.choice([28, 42, 56]), chance.choice([28, 42, 56]))
            for i in range(pictures[row % len(pictures)])
        )
        prompt = " ".join(chance.choices(WORDS, k=chance.randint(2, 9)))
        answers = tuple(
            Response(
                text=" ".join(chance.choices(WORDS, k=chance.randint(1, 8))),
                role="rejected" if i else "chosen",
                source="dataset" if i == 0 else "beam",
                difficulty=None if i == 0 else ("hard", "medium", "easy")[i % 3],
            )
            for i in range(counts[row % len(counts)])
        )
        groups.append(
            PromptGroup(
                id=f"row-{row}",
                images=refs,
                messages=(user_message(prompt, len(refs)),),
                responses=answers,
                origin=f"sample.jsonl:{row + 1}",
            )
        )
    return groups


def tiny_image(path: Path, width: int = 28, height: int = 28, seed: int | None = None) -> ImageRef:
    """Write an image of random pixels and return its reference."""
    chance = np.random.default_rng(zlib.crc32(f"{path.name} {width} {height}".encode()) if seed is None else seed)
    Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return ImageRef(path=str(path))


def image_rows(folder: Path, count: int = 12, **changes: Any) -> list[dict[str, Any]]:
    """Good rows of a data file, each with an image of its own in `folder`; `changes` to the third."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        tiny_image(folder / f"{i}.png", 28, 28)
        row = {"prompt": "what is this ?", "image": f"{i}.png", "chosen": f"a red square {i}", "rejected": "a star"}
        rows.append(row)
    rows[2] |= changes
    return rows


def _tokenizer(special: Sequence[str], starts_with: str = "", **named: Any) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360 + len(special),
        initial_alphabet=sorted(alphabet),
        special_tokens=list(special),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    if starts_with:
        start = (starts_with, core.token_to_id(starts_with))
        core.post_processor = processors.TemplateProcessing(single=f"{starts_with} $A", special_tokens=[start])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    return _tokenizer(_QWEN_TOKENS, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left")


def _qwen_processor(stock: Any) -> Callable[[], Any]:
    def make() -> Any:
        images = Qwen2VLImageProcessorPil(
            patch_size=7, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
        )
        template = _CHATML.replace("IMAGE", _QWEN_IMAGE)
        return image_only(stock)(image_processor=images, tokenizer=_qwen_tokenizer(), chat_template=template)

    return make


_GRID = [[28, 28], [28, 56], [56, 28], [56, 56]]


def _llava_processor(stock: Any, image_processor: Any) -> Callable[[], Any]:
    def make() -> Any:
        tokenizer = _tokenizer(
            ("<unk>", "<s>", "</s>", "<pad>", "<image>"), "<s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        return stock(
            image_processor=image_processor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
            tokenizer=tokenizer,
            patch_size=7,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=_VICUNA,
        )

    return make


def _idefics_processor(bos: str) -> Callable[[], Any]:
    def make() -> Any:
        tokenizer = _tokenizer(_IDEFICS_TOKENS, bos, bos_token=bos, eos_token="<end_of_utterance>", pad_token="<pad>")
        images = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
        template = _IDEFICS.replace("BOS", bos)
        return Idefics3Processor(image_processor=images, tokenizer=tokenizer, image_seq_len=4, chat_template=template)

    return make


def _internvl_processor() -> Any:
    tokenizer = _tokenizer(
        (*_CHATML_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    images = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=2)
    template = _CHATML.replace("IMAGE", "<IMG_CONTEXT>")
    return image_only(InternVLProcessor)(
        image_processor=images, tokenizer=tokenizer, image_seq_length=4, chat_template=template
    )


def _paligemma_processor() -> Any:
    tokenizer = _tokenizer(
        ("<pad>", "<eos>", "<bos>", "<image>"), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 16
    return PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)


def _gemma3_processor() -> Any:
    special = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(
        (*special, *named.values()),
        "<bos>",
        bos_token="<bos>",
        eos_token="<end_of_turn>",
        pad_token="<pad>",
        extra_special_tokens=named,
    )
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return Gemma3Processor(image_processor=images, tokenizer=tokenizer, image_seq_length=4, chat_template=_GEMMA)


_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def _text(tokenizer: Any, changes: dict[str, Any], **more: Any) -> dict[str, Any]:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return _TEXT | {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id} | ids | more | changes


def _qwen_config(family: str) -> Callable[[Any, dict[str, Any]], Any]:
    def make(tokenizer: Any, changes: dict[str, Any]) -> Any:
        vision: dict[str, Any] = {
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 7,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
        text: dict[str, Any] = {"rope_parameters": rope}
        if family == "qwen2_vl":
            vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        elif family == "qwen2_5_vl":
            vision |= {"intermediate_size": 48, "out_hidden_size": 64, "window_size": 28, "fullatt_block_indexes": [1]}
        else:
            vision |= {
                "intermediate_size": 48,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            }
            text |= {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True}}
        if family == HYBRID:
            del vision["deepstack_visual_indexes"]
            text |= {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
            text |= {"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
            text["rope_parameters"] |= {"partial_rotary_factor": 1.0}
        if family == "qwen3_vl_moe":
            text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        return AutoConfig.for_model(
            family,
            text_config=_text(tokenizer, changes, **text),
            vision_config=vision,
            image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
            vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
            vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
            tie_word_embeddings=False,
        )

    return make


_SIGLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}


def _llava_config(family: str, **more: Any) -> Callable[[Any, dict[str, Any]], Any]:
    def make(tokenizer: Any, changes: dict[str, Any]) -> Any:
        return AutoConfig.for_model(
            family,
            text_config={"model_type": "llama", **_text(tokenizer, changes)},
            vision_config={"model_type": "clip_vision_model", **_SIGLIP, "projection_dim": 32},
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            **more,
        )

    return make


def _idefics_config(family: str) -> Callable[[Any, dict[str, Any]], Any]:
    def make(tokenizer: Any, changes: dict[str, Any]) -> Any:
        return AutoConfig.for_model(
            family,
            text_config={"model_type": "llama", **_text(tokenizer, changes)},
            vision_config=_SIGLIP,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )

    return make


def _internvl_config(tokenizer: Any, changes: dict[str, Any]) -> Any:
    return AutoConfig.for_model(
        "internvl",
        text_config={"model_type": "qwen2", **_text(tokenizer, changes)},
        vision_config=_SIGLIP | {"image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )


def _paligemma_config(tokenizer: Any, changes: dict[str, Any]) -> Any:
    return AutoConfig.for_model(
        "paligemma",
        text_config={"model_type": "gemma", **_text(tokenizer, changes, head_dim=16)},
        vision_config={"model_type": "siglip_vision_model", **_SIGLIP, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=64,
        tie_word_embeddings=False,
    )


def _gemma3_config(tokenizer: Any, changes: dict[str, Any]) -> Any:
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12, "head_dim": 16}
    return AutoConfig.for_model(
        "gemma3",
        text_config={"model_type": "gemma3_text", **_text(tokenizer, changes, query_pre_attn_scalar=16, **layers)},
        vision_config={"model_type": "siglip_vision_model", **_SIGLIP, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )


def _mllama_processor() -> Any:
    special = ("<|begin_of_text|>", "<|eot_id|>", "<pad>", "<|image|>", "<|start_header_id|>", "<|end_header_id|>")
    named = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[2]}
    images = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2)
    tokenizer = _tokenizer(special, special[0], **named)
    return MllamaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=_LLAMA)


def _mllama_config(tokenizer: Any, changes: dict[str, Any]) -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1}
    vision |= {"attention_heads": 2, "image_size": 28, "patch_size": 7, "max_num_tiles": 2, "vision_output_dim": 64}
    vision |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    text = _text(tokenizer, changes, cross_attention_layers=[1], num_hidden_layers=3)
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    return AutoConfig.for_model("mllama", text_config=text, vision_config=vision, image_token_index=image)


class _Row(NamedTuple):
    """A family: how its processor and its configuration are made, and what ends an answer in its template."""

    processor: Callable[[], Any]
    config: Callable[[Any, dict[str, Any]], Any]
    end: str


_NEXT_IMAGES = functools.partial(LlavaNextImageProcessorPil, image_grid_pinpoints=_GRID)
_TABLE: dict[str, _Row] = {
    "qwen2_5_vl": _Row(_qwen_processor(Qwen2_5_VLProcessor), _qwen_config("qwen2_5_vl"), "<|im_end|>"),
    "qwen3_vl": _Row(_qwen_processor(Qwen3VLProcessor), _qwen_config("qwen3_vl"), "<|im_end|>"),
    "llava": _Row(
        _llava_processor(LlavaProcessor, CLIPImageProcessorPil), _llava_config("llava", image_seq_length=16), "</s>"
    ),
    "idefics3": _Row(_idefics_processor("<|begin_of_text|>"), _idefics_config("idefics3"), "<end_of_utterance>"),
    # The image half of SmolVLM's own processor, without the package that it wants for the lengths of videos.
    "smolvlm": _Row(_idefics_processor("<|im_start|>"), _idefics_config("smolvlm"), "<end_of_utterance>"),
    "qwen2_vl": _Row(_qwen_processor(Qwen2VLProcessor), _qwen_config("qwen2_vl"), "<|im_end|>"),
    "qwen3_vl_moe": _Row(_qwen_processor(Qwen3VLProcessor), _qwen_config("qwen3_vl_moe"), "<|im_end|>"),
    "llava_next": _Row(
        _llava_processor(LlavaNextProcessor, _NEXT_IMAGES),
        _llava_config("llava_next", image_grid_pinpoints=_GRID),
        "</s>",
    ),
    "internvl": _Row(_internvl_processor, _internvl_config, "<|im_end|>"),
    "paligemma": _Row(_paligemma_processor, _paligemma_config, "<eos>"),
    "gemma3": _Row(_gemma3_processor, _gemma3_config, "<end_of_turn>"),
    HYBRID: _Row(_qwen_processor(Qwen3VLProcessor), _qwen_config(HYBRID), "<|im_end|>"),
    CROSS: _Row(_mllama_processor, _mllama_config, "<|eot_id|>"),
}
"""Every family that can be made: a new one is a row here."""

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava", "idefics3", "smolvlm")
"""The families that every scoring test runs on."""

MORE_FAMILIES = tuple(family for family in _TABLE if family not in (*FAMILIES, HYBRID, CROSS))
"""Those whose prompts are shared too. PaliGemma has no chat template and takes no text-only rows."""
