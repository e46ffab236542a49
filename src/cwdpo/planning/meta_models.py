"""The model of a recipe without its weights: its configuration, and modules whose weights have shapes alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cwdpo.errors import ModelError, one_line
from cwdpo.models.attention import SHARED_PREFIX, use_own_attention
from cwdpo.models.loading import add_lora
from cwdpo.models.parts import freeze_parts, part_of
from cwdpo.planning.int4_linear import PackedLinear, pack_layers
from cwdpo.recipe import LoraSection, ModelSection, Recipe
from cwdpo.scenes import base_path

__all__ = ["Depths", "Size", "bare_model", "depths_of", "model_config", "model_of", "size_of", "stack_of"]


def _qwen2_5_vl(hidden: int, layers: int, heads: int, keys: int, inner: int, vision_inner: int) -> dict[str, Any]:
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        "vocab_size": 151_936 if hidden == 2048 else 152_064,
        "max_position_embeddings": 128_000,
        "tie_word_embeddings": hidden == 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": vision_inner,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    tokens = {"image_token_id": 151_655, "video_token_id": 151_656, "vision_start_token_id": 151_652}
    return {
        "model_type": "qwen2_5_vl",
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": hidden == 2048,
        "vision_end_token_id": 151_653,
        **tokens,
    }


def _qwen3_vl(hidden: int, layers: int, heads: int, inner: int) -> dict[str, Any]:
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": inner,
        "vocab_size": 151_936,
        "max_position_embeddings": 262_144,
        "tie_word_embeddings": hidden < 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    }
    vision = {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304, "out_hidden_size": hidden}
    return {
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": hidden < 4096,
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
    }


_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5_vl(2048, 36, 16, 2, 11_008, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5_vl(3584, 28, 28, 4, 18_944, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen2_5_vl(5120, 64, 40, 8, 27_648, 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen2_5_vl(8192, 80, 64, 8, 29_568, 3456),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3_vl(4096, 36, 32, 12_288),
}
"""Public sizes of the models that the shipped recipes start from, so that they can be planned without a download."""


def model_config(section: ModelSection) -> tuple[Any, LoraSection | None]:
    """Return a model's configuration, from its folder, from the hub's cache or of a known size, and its adapters.

    Nothing is downloaded. Of a folder with an adapter, the configuration is that of its base.

    Raises:
        ModelError: There is none at hand.
    """
    path = str(base_path()) if section.path == "scenes" else section.path
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        settings = _adapter(folder / "adapter_config.json")
        base, _ = model_config(section.model_copy(update={"path": str(settings["base_model_name_or_path"])}))
        lora = {"r": settings["r"], "alpha": settings["lora_alpha"], "target_modules": settings["target_modules"]}
        return base, LoraSection(**lora, dora=bool(settings.get("use_dora")))
    if path in _KNOWN and not folder.exists():
        from transformers import AutoConfig

        known = copy.deepcopy(dict(_KNOWN[path]))
        return AutoConfig.for_model(known.pop("model_type"), **known), section.lora
    return _read_config(path, section.trust_remote_code), section.lora


def _adapter(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        needed = ("base_model_name_or_path", "r", "lora_alpha", "target_modules")
        return {name: found[name] for name in needed} | {"use_dora": found.get("use_dora")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: is no adapter's configuration ({one_line(error, 120)})") from None


def _read_config(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{path}: no config.json; a model directory in Hugging Face layout is needed, without weights")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if folder.exists():
            raise ModelError(f"{path}: config.json cannot be read: {one_line(error, 200)}") from None
        raise ModelError(
            f"{path}: the model is not on this machine, and plan downloads nothing; copy its config.json (and the "
            "processor's files, for exact lengths) into a folder and add --set model.path=FOLDER. "
            f"Known without: {', '.join(_KNOWN)}"
        ) from None
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError(f"{path}: {config.model_type!r} is not a vision-language model that transformers knows")
    return config


@dataclass(frozen=True)
class Depths:
    """How many layers a model has: of its language model, and of its tower, windowed and looking at everything.

    Attributes:
        text: Layers of the language model.
        windowed: Layers of the tower that look at windows.
        whole: Layers of the tower that look at everything.
        period: After how many layers of the language model their kinds come again.
    """

    text: int
    windowed: int
    whole: int
    period: int = 1

    def lowered(self) -> Depths:
        """Return depths that a run of a moment can have, from which one more of each tells what a layer takes.

        Each stack has a first, a last and another layer; Qwen3-VL gives its first three something of their own.
        """
        few = 3 + (self.text - 3) % self.period
        least = Depths(few, 1, 2) if self.windowed else Depths(few, 0, 3)
        parts = ((name, getattr(self, name), getattr(least, name)) for name in ("text", "windowed", "whole"))
        return replace(self, **{name: have if have <= few + self.step(name) else few for name, have, few in parts})

    def step(self, name: str) -> int:
        """Return how many layers are added at once, so that the rest is that many times as much."""
        return self.period if name == "text" else 1

    def one_more(self, name: str) -> Depths:
        """Return the same with one more layer of a kind, or a period of them."""
        return replace(self, **{name: getattr(self, name) + self.step(name)})


def depths_of(config: Any) -> Depths:
    """Return how deep a configuration's model is."""
    vision = getattr(config, "vision_config", None)
    depth = getattr(vision, "num_hidden_layers", 0) if vision is not None else 0
    whole = len(getattr(vision, "fullatt_block_indexes", None) or ()) or depth
    text = config.get_text_config()
    return Depths(text.num_hidden_layers, depth - whole, whole, _period(getattr(text, "layer_types", None) or ()))


def _period(kinds: Sequence[str]) -> int:
    """Return the smallest number of layers after which their kinds come again."""
    return next((n for n in range(1, len(kinds)) if all(a == b for a, b in zip(kinds, kinds[n:], strict=False))), 1)


def _with_depths(config: Any, depths: Depths) -> Any:
    """Return a configuration of other depths."""
    if depths_of(config) == depths:
        return config
    config = copy.deepcopy(config)
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    text.num_hidden_layers = depths.text
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types[: depths.text])
    if vision is not None and depths.windowed + depths.whole:
        vision.num_hidden_layers = depth = depths.windowed + depths.whole
        if getattr(vision, "fullatt_block_indexes", None):
            vision.fullatt_block_indexes = list(range(depth - depths.whole, depth))
        if getattr(vision, "deepstack_visual_indexes", None):
            vision.deepstack_visual_indexes = list(range(len(vision.deepstack_visual_indexes)))
    return config


def bare_model(config: Any, section: ModelSection, depths: Depths, dtype: torch.dtype) -> Any:
    """Return the model to train as a recipe has it, parts frozen and adapters put on, on torch's device `meta`.

    Args:
        config: Its configuration.
        section: The recipe's section.
        depths: How deep it is to be.
        dtype: Type of what is loaded; adapters are float32.

    Raises:
        ModelError: transformers has no such model, or it cannot be quantised.
    """
    from transformers import AutoModelForImageTextToText

    own = section.attention in ("sdpa", "eager")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                _with_depths(config, depths),
                dtype=dtype,
                attn_implementation=section.attention if own else "sdpa",
                trust_remote_code=section.trust_remote_code,
            )
            torch.set_default_dtype(torch.float32)
            if section.quantization is not None:
                _pack(model, section)
            if section.attention == SHARED_PREFIX:
                use_own_attention(model, SHARED_PREFIX)
            model.config.use_cache = False
            if section.lora is None:
                freeze_parts(model, section.freeze)
                return model
            return add_lora(model, section, section.lora)
    except (ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise ModelError(f"{section.path}: the model cannot be made from its config.json: {one_line(error)}") from error
    finally:
        torch.set_default_dtype(before)


def _pack(model: Any, section: ModelSection) -> None:
    layers = stack_of(model, "language")
    weights = sum(p.numel() for p in layers.parameters() if p.ndim > 1) if layers is not None else 0
    if 2 * pack_layers(model) < weights:
        raise ModelError(
            f"{section.path}: most weights in the layers of {type(model).__name__} are not linear layers (experts, as "
            "a rule), which bitsandbytes leaves as they are; leave model.quantization out"
        )


def stack_of(model: Any, part: str) -> nn.ModuleList | None:
    """Return the layers of the language model or of the tower: the longest list of modules in that part."""
    stacks = [
        (len(module), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and (part_of(name) == "language") == (part == "language")
    ]
    return max(stacks, key=lambda found: found[0], default=(0, None))[1]


@dataclass(frozen=True)
class Size:
    """How large a model is, as it is loaded to be trained.

    Attributes:
        weights: How many there are, adapters not counted.
        adapters: Weights of the adapters.
        bytes: Bytes of all of them.
        trained: How many are trained.
        block: Bytes of the largest layer, which sharding gathers at once.
        block_trained: Trained weights of that layer.
        outside: Bytes of what is in no layer: embeddings, head, norms, what joins the tower to the language model.
        keys: Numbers that the key-value cache keeps of a token.
        layers: Of the language model.
        vocabulary: Tokens that the head tells apart.
        language: Weights that a text token is multiplied with: those of the layers (of experts, the chosen ones).
        tower: Weights that a patch of a picture is multiplied with.
        patches: Patches that become one visual token.
    """

    weights: int
    adapters: int
    bytes: int
    trained: int
    block: int
    block_trained: int
    outside: int
    keys: int
    layers: int
    vocabulary: int
    language: int
    tower: int
    patches: int


def size_of(config: Any, model: Any) -> Size:
    """Measure a model (on any device)."""
    packed = {id(m.weight): m.packed_bytes for m in model.modules() if isinstance(m, PackedLinear)}

    def total(parameters: Iterator[nn.Parameter], trained: bool = False) -> tuple[int, int]:
        kept = [p for p in parameters if p.requires_grad or not trained]
        return sum(p.numel() for p in kept), sum(packed.get(id(p), p.nbytes) for p in kept)

    stacks = [stack for part in ("language", "vision") if (stack := stack_of(model, part)) is not None]
    blocks = [layer for stack in stacks for layer in stack]
    largest = max(blocks, key=lambda layer: total(layer.parameters())[1])
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    count, size = total(model.parameters())
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    return Size(
        weights=count - adapters,
        adapters=adapters,
        bytes=size,
        trained=total(model.parameters(), trained=True)[0],
        block=total(largest.parameters())[1],
        block_trained=total(largest.parameters(), trained=True)[0],
        outside=size - sum(total(b.parameters())[1] for b in blocks),
        keys=2 * heads * width * text.num_hidden_layers,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        language=sum(_met(p, text) for stack in stacks[:1] for p in stack.parameters()),
        tower=sum(p.numel() for name, p in model.named_parameters() if part_of(name) == "vision"),
        patches=int(getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1)) ** 2,
    )


def _met(parameter: Any, text: Any) -> int:
    """Return how many of a parameter's numbers a token is multiplied with: of experts, those that it goes to."""
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if experts and chosen and parameter.ndim == 3 and parameter.shape[0] == experts:
        return parameter.numel() * chosen // experts
    return parameter.numel()


def model_of(recipe: Recipe) -> tuple[Recipe, Any]:
    """Return a recipe with the adapters that its model comes with, and the model's configuration.

    Raises:
        ModelError: There is no configuration at hand.
    """
    config, lora = model_config(recipe.model)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": lora})}), config
