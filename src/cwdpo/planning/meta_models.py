"""The model of a recipe without its weights: its configuration, and modules whose weights have shapes alone."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from cwdpo.errors import ModelError, one_line
from cwdpo.models.attention import SHARED_PREFIX, use_own_attention
from cwdpo.models.loading import add_lora
from cwdpo.models.parts import freeze_parts, part_of
from cwdpo.recipe import LoraSection, ModelSection, Recipe
from cwdpo.safe_yaml import parse_yaml
from cwdpo.scenes import base_path

__all__ = ["PackedLinear", "Size", "bare_model", "layers_of", "model_config", "model_of", "size_of", "stack_of"]


@functools.cache
def _known() -> dict[str, Any]:
    text = (files("cwdpo.planning") / "known_models.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, "known_models.yaml")


def model_of(recipe: Recipe) -> tuple[Recipe, Any]:
    """Return a recipe with the adapters that its model comes with, and the model's configuration.

    Raises:
        ModelError: There is no configuration at hand.
    """
    config, lora = model_config(recipe.model)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": lora})}), config


def model_config(section: ModelSection) -> tuple[Any, LoraSection | None]:
    """Return a model's configuration, from its folder, from the hub's cache or of a known size, and its adapters.

    Nothing is downloaded. Of a folder with an adapter, the configuration is that of its base.

    Raises:
        ModelError: There is none at hand.
    """
    from transformers import AutoConfig

    path = str(base_path()) if section.path == "scenes" else section.path
    adapter = Path(path) / "adapter_config.json"
    if adapter.is_file():
        try:
            found = json.loads(adapter.read_text(encoding="utf-8"))
            lora = {"r": found["r"], "alpha": found["lora_alpha"], "target_modules": found["target_modules"]}
            base = str(found["base_model_name_or_path"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{adapter}: is no adapter's configuration ({one_line(error, 120)})") from None
        config, _ = model_config(section.model_copy(update={"path": base}))
        return config, LoraSection(**lora, dora=bool(found.get("use_dora")))
    if path in _known() and not Path(path).exists():
        known = copy.deepcopy(_known()[path])
        return AutoConfig.for_model(known.pop("model_type"), **known), section.lora
    return _read_config(path, section.trust_remote_code), section.lora


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
            f"Known without: {', '.join(_known())}"
        ) from None
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError(f"{path}: {config.model_type!r} is not a vision-language model that transformers knows")
    return config


def layers_of(config: Any) -> tuple[int, int]:
    """Return the layers of a language model, and after how many of them their kinds come again."""
    text = config.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or ())
    again = (n for n in range(1, len(kinds)) if all(a == b for a, b in zip(kinds, kinds[n:], strict=False)))
    return text.num_hidden_layers, next(again, 1)


def bare_model(config: Any, section: ModelSection, dtype: torch.dtype, layers: int | None = None) -> Any:
    """Return the model to train as a recipe has it, parts frozen and adapters put on, on torch's device `meta`.

    Args:
        config: Its configuration.
        section: The recipe's section.
        dtype: Type of what is loaded; adapters are float32.
        layers: Layers of its language model; None: all.

    Raises:
        ModelError: transformers has no such model, or it cannot be quantised.
    """
    from transformers import AutoModelForImageTextToText

    if layers is not None:
        config = copy.deepcopy(config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = list(text.layer_types[:layers])
    own = section.attention in ("sdpa", "eager")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                config,
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
    weights = sum(p.numel() for p in nn.ModuleList(stack_of(model, "language")).parameters() if p.ndim > 1)
    if 2 * pack_layers(model) < weights:
        raise ModelError(
            f"{section.path}: most weights in the layers of {type(model).__name__} are not linear layers (experts, as "
            "a rule), which bitsandbytes leaves as they are; leave model.quantization out"
        )


def stack_of(model: Any, part: str) -> list[Any]:
    """Return the layers of the language model or of the tower: the longest list of modules in that part."""
    stacks = (
        list(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and (part_of(name) == "language") == (part == "language")
    )
    return max(stacks, key=len, default=[])


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

    def size(parameters: Iterable[nn.Parameter]) -> int:
        return sum(packed.get(id(p), p.nbytes) for p in parameters)

    def trained(parameters: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() for p in parameters if p.requires_grad)

    language, blocks = stack_of(model, "language"), [*stack_of(model, "language"), *stack_of(model, "vision")]
    largest = max(blocks, key=lambda layer: size(layer.parameters()))
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    return Size(
        weights=sum(p.numel() for p in model.parameters()) - adapters,
        adapters=adapters,
        bytes=size(model.parameters()),
        trained=trained(model.parameters()),
        block=size(largest.parameters()),
        block_trained=trained(largest.parameters()),
        outside=size(model.parameters()) - sum(size(block.parameters()) for block in blocks),
        keys=2 * heads * width * text.num_hidden_layers,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        language=sum(_met(p, text) for layer in language for p in layer.parameters()),
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


_BLOCK, _SCALES = 64, 256
"""Weights that share a scale of 8 bits, and scales that share one of 32."""
_TABLES = 4 * (16 + 256 + 1)
"""Bytes of a matrix's levels: of its weights, of its scales, and their mean."""
_IN_A_LAYER = re.compile(r"\.\d+\.")


class PackedLinear(nn.Linear):
    """A linear layer whose matrix is in 4 bits: made whole for a product, and again for the gradient of its input."""

    @property
    def packed_bytes(self) -> int:
        """What its matrix takes."""
        n = self.weight.numel()
        blocks = -(-n // _BLOCK)
        return -(-n // 2) + blocks + 4 * -(-blocks // _SCALES) + _TABLES

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output."""
        found: Any = _Product.apply(input.to(self.weight.dtype), self.weight, self.bias)
        return found.to(input.dtype)


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return functional.linear(input, weight.clone(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ ctx.weight.clone(), None, None


def pack_layers(model: nn.Module) -> int:
    """Put such layers in place of those that QLoRA quantises; return how many weights they hold."""
    packed = 0
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and _IN_A_LAYER.search(name) and part_of(name) == "language":
            with torch.device("meta"):
                own = PackedLinear(module.in_features, module.out_features)
            own.weight, own.bias = module.weight, module.bias
            own.requires_grad_(False)
            model.set_submodule(name, own)
            packed += own.weight.numel()
    return packed
