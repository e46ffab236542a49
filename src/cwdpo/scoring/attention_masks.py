"""Which token sees which: one rule, as a dense mask for any attention, or as blocks for FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cwdpo.errors import ModelError
from cwdpo.models.attention import SHARED_FLEX, SHARED_PREFIX, require_backward
from cwdpo.scoring.family import family_of
from cwdpo.scoring.sequence_layout import PADDING, PREFIX, Layout

__all__ = ["MASKED", "Rule", "attention_mask", "attention_of", "blocks_of", "dense", "layer_types", "rule_of"]

MASKED = ("sdpa", "eager", SHARED_PREFIX, SHARED_FLEX)
"""Attention implementations that take a mask of our own."""

Rule = Callable[[Any, Any, Any, Any], Tensor]
"""(row, head, query, key) → whether the query sees the key: torch's `mask_mod`. Heads are all alike."""


def layer_types(text: Any) -> set[str]:
    """Return the types of layers that a text configuration names."""
    return set(getattr(text, "layer_types", None) or ())


def attention_of(inner: Any) -> str:
    """Return the language model's attention implementation."""
    return str(inner.config.get_text_config()._attn_implementation)


def attention_mask(inner: Any, layout: Layout, types: dict[str, Tensor]) -> Any:
    """Return the mask in the form that the text model reads: one, or one for each type of layer.

    It always has four axes: without such a mask transformers looks for packed sequences in the positions.

    Args:
        inner: The transformers model.
        layout: Where the tokens are.
        types: Further per-token inputs.

    Raises:
        ModelError: The attention takes no mask of our own.
    """
    text = inner.config.get_text_config()
    blocks = family_of(inner).two_way_blocks(layout.segments == PREFIX, types)
    full = rule_of(layout, blocks, inner.device)
    if attention_of(inner) == SHARED_PREFIX and _prefix_is_causal(inner, layout):
        return dense(full, layout, inner.device)[:, None, layout.prefix_end :]
    if "sliding_attention" not in layer_types(text):
        return _mask(inner, full, layout)
    near = rule_of(layout, blocks, inner.device, text.sliding_window)
    return {"full_attention": _mask(inner, full, layout), "sliding_attention": _mask(inner, near, layout)}


def rule_of(layout: Layout, blocks: Tensor, device: torch.device, window: int | None = None) -> Rule:
    """Return the rule of a layout: a token sees the prefix and the earlier tokens of its own response, no other group.

    Args:
        layout: Where the tokens are.
        blocks: `Long[rows, width]`: tokens of one block of a group see each other in both directions; -1 is no block.
        device: Where the rule is evaluated.
        window: How far back a token sees, itself counted, in tokens of its own prefix + response.
    """
    told = torch.stack([layout.groups, layout.segments, layout.index, blocks]).to(device, non_blocking=True)
    groups, segments, index, blocks = told.unbind()

    def sees(row: Any, head: Any, query: Any, key: Any) -> Tensor:
        theirs = segments[row, key]
        seen = (key <= query) & ((theirs == PREFIX) | (theirs == segments[row, query]))
        seen = seen | ((blocks[row, query] == blocks[row, key]) & (blocks[row, key] >= 0))
        seen = seen & (groups[row, query] == groups[row, key]) & (theirs != PADDING)
        if window is not None:
            seen = seen & (index[row, query] - index[row, key] < window)
        # A row that sees nothing is NaN in some kernels, and NaN times 0 is NaN in its gradient.
        return seen | (query == key)

    return sees


def dense(rule: Rule, layout: Layout, device: torch.device) -> Tensor:
    """Return `Bool[rows, width, width]`: true where a query (second axis) sees a key (third)."""
    rows, width = layout.ids.shape
    row, column = torch.arange(rows, device=device), torch.arange(width, device=device)
    return rule(row[:, None, None], None, column[None, :, None], column[None, None, :])


def blocks_of(rule: Rule, layout: Layout, device: torch.device) -> Any:
    """Return the rule as torch's `BlockMask`: blocks of 128 × 128 that are fully masked are skipped."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, width = layout.ids.shape
    # Without being compiled it makes the dense mask on the way.
    return create_block_mask(rule, rows, None, width, width, device=device, _compile=device.type != "cpu")


def _mask(inner: Any, rule: Rule, layout: Layout) -> Any:
    attention = attention_of(inner)
    if attention not in MASKED:
        raise ModelError(
            f"attention = {attention}: sharing the prompt needs {', '.join(MASKED)}; set model.attention: sdpa"
        )
    if attention == SHARED_FLEX:
        if torch.is_grad_enabled() and any(p.requires_grad for p in inner.parameters()):
            require_backward(inner.device.type)
        dropout = getattr(inner.config.get_text_config(), "attention_dropout", 0.0)
        if inner.training and dropout > 0:
            raise ModelError(
                f"attention = flex_attention: it knows no dropout, and the model has attention_dropout = {dropout:g}; "
                "set model.attention: sdpa"
            )
        return blocks_of(rule, layout, inner.device)
    seen = dense(rule, layout, inner.device)[:, None]
    if attention == "eager":  # it adds the mask to the scores: a boolean one would be silently wrong
        return torch.zeros_like(seen, dtype=inner.dtype).masked_fill(~seen, torch.finfo(inner.dtype).min)
    return seen


def _prefix_is_causal(inner: Any, layout: Layout) -> bool:
    """Whether plain causal attention is right for all prefixes: no padding, nothing seen forward, no window."""
    text = inner.config.get_text_config()
    full = layout.prefix_end is not None and not any(start for _, start in layout.places)
    return family_of(inner).causal_prefix and full and "sliding_attention" not in layer_types(text)
