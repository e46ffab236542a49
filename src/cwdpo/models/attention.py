"""Attention functions for shared prefixes: a causal prefix without a mask, and a mask as blocks (FlexAttention)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cwdpo.errors import ModelError

__all__ = ["OWN_ATTENTION", "SHARED_FLEX", "SHARED_PREFIX", "require_backward", "use_own_attention"]

SHARED_PREFIX, SHARED_FLEX = "shared_prefix", "shared_flex"
"""Their names among transformers' attention implementations."""

OWN_ATTENTION = {"shared_prefix": SHARED_PREFIX, "flex_attention": SHARED_FLEX}
"""What a recipe calls them. Under its own name transformers refuses FlexAttention for Qwen-VL, for the tower's sake."""


def use_own_attention(model: Any, name: str) -> None:
    """Have the language model of a vision-language model attend by a function of ours; the tower stays.

    Where no prefix is shared (generation, separate sequences) both compute what `sdpa` does.

    Args:
        model: The transformers model.
        name: A key of `OWN_ATTENTION`.
    """
    AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
    AttentionInterface.register(SHARED_FLEX, shared_flex_attention)
    for own in OWN_ATTENTION.values():
        AttentionMaskInterface.register(own, sdpa_mask)
    model.set_attn_implementation({"text_config": OWN_ATTENTION[name]})


def require_backward(device: str) -> None:
    """Refuse FlexAttention in training where torch has no backward pass of it.

    Args:
        device: A type of device.

    Raises:
        ModelError: It is a CPU or Apple's GPU.
    """
    if device in ("cpu", "mps"):
        raise ModelError(
            f"attention = flex_attention: torch has no backward pass for it on {device}, so nothing can be trained "
            "there; set model.attention: sdpa"
        )


def shared_flex_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend by FlexAttention where the mask is one of blocks.

    Args:
        module: The layer.
        query: `[batch, heads, queries, width]`.
        key: `[batch, key heads, queries, width]`.
        value: Like `key`.
        attention_mask: A `BlockMask`, or what `sdpa` takes.
        kwargs: Scaling, dropout and what else transformers' function takes.

    Returns:
        `[batch, queries, heads, width]`, and what transformers' function returns beside it.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention
    from transformers.integrations.flex_attention import flex_attention_forward

    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # which casts what sdpa is given, but not what FlexAttention is
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if device != "cpu":
        return flex_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # transformers compiles it, which takes minutes on a CPU; without, torch computes all scores and masks them.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        scale, grouped = kwargs.get("scaling"), query.shape[1] != key.shape[1]
        out: Any = flex_attention(query, key, value, block_mask=attention_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


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
