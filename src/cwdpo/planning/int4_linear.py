"""Linear layers as they are in 4 bits, without numbers: what they hold, and what they take when they are used."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from cwdpo.models.parts import part_of

__all__ = ["PackedLinear", "pack_layers"]

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
