"""A frozen base in 4 bits under the adapters (QLoRA): what is quantised, and what such weights can and cannot do."""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from cwdpo.errors import ModelError
from cwdpo.recipe import ModelSection

__all__ = [
    "compute_alike",
    "is_quantized",
    "quantization_config",
    "quantized_flops",
    "require_bitsandbytes",
    "settle_quantized",
    "weight_count",
]

_NOT_IN_A_LAYER = r"(?!.*\.\d+\.).*"
"""Modules outside of a numbered layer: embeddings and head."""


def require_bitsandbytes(section: ModelSection) -> None:
    """Find out before any work whether a base can be quantised here.

    Raises:
        ModelError: The package that does it is missing.
    """
    if section.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization: {section.quantization} needs bitsandbytes, which is not installed; "
            'pip install "cwdpo[qlora]", or leave model.quantization out'
        )


def quantization_config(section: ModelSection, dtype: torch.dtype, kept: str) -> Any:
    """Return how transformers is to quantise a base as it loads it, or None where it is not to.

    The linear layers of the language model are quantised, in blocks of 64 weights with scales that are quantised too.
    Embeddings, head and norms, the vision tower and what joins it to the language model stay in `dtype`.

    Args:
        section: The recipe's model section.
        dtype: Type of the computation.
        kept: A regular expression of modules that stay as they are.

    Raises:
        ModelError: The package that does it is missing.
    """
    if section.quantization is None:
        return None
    require_bitsandbytes(section)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[kept, _NOT_IN_A_LAYER],
    )


def is_quantized(model: Any) -> bool:
    """Whether some of the model's weights are held in fewer bits than they are computed with."""
    return bool(getattr(model, "is_quantized", False))


def settle_quantized(model: Any, where: str) -> None:
    """Make sure that a base that was just loaded is in 4 bits, and computes the same way at all times.

    Raises:
        ModelError: Its files hold weights that are quantised otherwise, or its layers are no linear ones.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        method = getattr(model, "quantization_method", None)
        raise ModelError(
            f"{where}: the weights are quantised already, by {getattr(method, 'value', method)}; give the original "
            "model, or one in bitsandbytes' 4 bits"
        )
    compute_alike(model)
    matrices: dict[bool, int] = {True: 0, False: 0}
    for module in _layers_of(model):
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                matrices[_is_packed(parameter)] += weight_count(parameter)
    if matrices[False] > matrices[True]:
        raise ModelError(
            f"{where}: most weights in the layers of {type(model).__name__} are not linear layers (experts, as a "
            "rule), which bitsandbytes leaves as they are; leave model.quantization out"
        )


def compute_alike(model: Any) -> None:
    """Have bitsandbytes compute the same on every processor, in evaluation as in training.

    On CPUs with AVX-512 (bitsandbytes 0.50) its kernel misreads matrices whose rows are no whole number of blocks, and
    with bfloat16 instructions it packs weights again, in place, at the first pass without gradients.

    Raises:
        ModelError: A matrix has such rows, and torch is older than 2.9, which can put another kernel in place.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or module.weight.device.type != "cpu" or state.shape[-1] % state.blocksize == 0:
            continue
        if not hasattr(torch.library, "get_kernel"):
            raise ModelError(
                f"{name}: rows of {state.shape[-1]} weights are no whole blocks of {state.blocksize}, which "
                "bitsandbytes misreads on some CPUs; update torch to 2.9, or leave model.quantization out"
            )
        _read_whole_blocks()


@functools.cache
def _read_whole_blocks() -> torch.library.Library:
    """Hand matrices to bitsandbytes' CPU kernel one block a row, where their own rows are no whole blocks."""
    kernel = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")

    def dequantize(
        keys: Any, packed: Any, scales: Any, block: int, kind: str, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        size = math.prod(shape)
        rows = shape if shape[-1] % block == 0 else (size // block, block) if size % block == 0 else (1, size)
        return kernel.call_boxed(keys, packed, scales, block, kind, list(rows), dtype).reshape(tuple(shape))

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        library.impl("dequantize_4bit", dequantize, "CPU", with_keyset=True)
    return library


def _layers_of(model: Any) -> Iterable[nn.Module]:
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    return text.layers.modules() if hasattr(text, "layers") else text.modules()


def _is_packed(parameter: torch.Tensor) -> bool:
    return getattr(parameter, "quant_state", None) is not None


def weight_count(parameter: torch.Tensor) -> int:
    """Return how many weights a parameter holds; one of packed 4-bit weights has half as many elements."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def quantized_flops() -> dict[Any, Callable[..., int]]:
    """Return what torch's counter of FLOPs does not know: the product with a matrix in 4 bits."""

    def product(inputs: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * inputs[-1] * math.prod(out_shape)

    own = torch.ops.bitsandbytes
    return {own.gemm_4bit: product} if hasattr(own, "gemm_4bit") else {}
