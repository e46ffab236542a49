"""An attention function for shared prefixes: the prefix attends causally, without a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["SHARED_PREFIX", "use_shared_prefix_attention"]

SHARED_PREFIX = "shared_prefix"
"""Its name among transformers' attention implementations."""


def use_shared_prefix_attention(model: Any) -> None:
    """Have the language model of a vision-language model attend by `shared_prefix_attention`; the tower stays.

    Where no prefix is shared it computes what `sdpa` does.
    """
    AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
    AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
    model.set_attn_implementation({"text_config": SHARED_PREFIX})


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in two parts where the mask has fewer rows than there are queries.

    The queries that the mask leaves out come first and attend causally among themselves: on GPUs by the kernel that
    needs no mask and repeats no heads (FlashAttention). The others attend to everything under the mask.

    Args:
        module: The layer.
        query: `[batch, heads, queries, width]`.
        key: `[batch, key heads, queries, width]`.
        value: Like `key`.
        attention_mask: `Bool[batch, 1, last queries, queries]`, or what `sdpa` takes.
        kwargs: Scaling, dropout and what else `sdpa` takes.

    Returns:
        `[batch, queries, heads, width]`, and no weights.
    """
    first = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if first <= 0 or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)
    alone = {"query": query[:, :, :first], "key": key[:, :, :first], "value": value[:, :, :first]}
    prefix, _ = sdpa_attention_forward(module, **alone, attention_mask=None, is_causal=True, **kwargs)
    rest, _ = sdpa_attention_forward(module, query[:, :, first:], key, value, attention_mask, **kwargs)
    return torch.cat([prefix, rest], 1), None
