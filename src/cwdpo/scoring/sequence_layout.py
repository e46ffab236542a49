"""Where the tokens of a batch stand in what the model is given: padded rows, or one row without padding."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cwdpo.scoring.batch import Batch, EncodedGroup
from cwdpo.scoring.family import computes_own_positions, family_of

__all__ = ["PADDING", "PREFIX", "Layout", "Place", "positions"]

PREFIX, PADDING = 0, -1

Place = tuple[int, int]
"""Row and column of a group's first token; the rest of the group follows it without a gap."""


@dataclass(frozen=True)
class Layout:
    """Every group as its prefix and then each response without its last token, which is only a target.

    Attributes:
        ids: `Long[rows, width]`, 0 at padding.
        groups: `Long[rows, width]`: the number of the token's group, -1 at padding.
        segments: `Long[rows, width]`: 0 is the prefix, k the k-th response of the group, -1 padding.
        index: `Long[rows, width]`: the token's place in prefix + response, 0 at padding.
        places: Where each group starts.
        prefix_end: The column after every prefix where all end at the same one, else None.
    """

    ids: Tensor
    groups: Tensor
    segments: Tensor
    index: Tensor
    places: tuple[Place, ...]
    prefix_end: int | None

    @classmethod
    def padded(cls, batch: Batch) -> Layout:
        """One row a group: prefixes padded on the left to the longest, responses on the right."""
        end = max(len(g.prefix_ids) for g in batch.groups)
        places = [(row, end - len(g.prefix_ids)) for row, g in enumerate(batch.groups)]
        return cls._filled(batch, places, end)

    @classmethod
    def packed(cls, batch: Batch) -> Layout:
        """All groups in one row, one behind the other."""
        places, column = list[Place](), 0
        for group in batch.groups:
            places.append((0, column))
            column += len(group.prefix_ids) + sum(len(r.ids) - 1 for r in group.responses)
        return cls._filled(batch, places, len(batch.groups[0].prefix_ids) if len(places) == 1 else None)

    @classmethod
    def _filled(cls, batch: Batch, places: Sequence[Place], prefix_end: int | None) -> Layout:
        filled = [_rows_of(group, number) for number, group in enumerate(batch.groups)]
        width = max(start + tokens.shape[1] for (_, start), tokens in zip(places, filled, strict=True))
        whole = torch.tensor([0, PADDING, PADDING, 0])[:, None, None].repeat(1, places[-1][0] + 1, width)
        for (row, start), tokens in zip(places, filled, strict=True):
            whole[:, row, start : start + tokens.shape[1]] = tokens
        ids, groups, segments, index = whole.unbind()
        return cls(ids, groups, segments, index, tuple(places), prefix_end)

    @property
    def tokens(self) -> Tensor:
        """`Bool[rows, width]`: true at tokens."""
        return self.segments != PADDING

    def predicting(self) -> Tensor:
        """Return `Bool[rows, width]`: the positions whose logits are needed, group by group in order."""
        return (self.segments > PREFIX) | self._last_of_prefix()

    def _last_of_prefix(self) -> Tensor:
        prefix = self.segments == PREFIX
        follows = torch.full_like(self.groups, PADDING)
        follows[:, :-1] = torch.where(prefix, self.groups, PADDING)[:, 1:]
        return prefix & (follows != self.groups)


def _rows_of(group: EncodedGroup, number: int) -> Tensor:
    """Return `Long[4, tokens]`: ids, group, segment and index of one group's tokens."""
    prefix, tails = len(group.prefix_ids), [r.ids[:-1] for r in group.responses]
    ids = torch.tensor([*group.prefix_ids, *itertools.chain(*tails)], dtype=torch.long)
    lengths = torch.tensor([prefix, *map(len, tails)])
    segments = torch.arange(len(lengths)).repeat_interleave(lengths)
    before = torch.where(torch.arange(len(lengths)) > 0, lengths.cumsum(0) - lengths - prefix, 0)
    index = torch.arange(len(ids)) - before[segments]
    return torch.stack([ids, torch.full_like(ids, number), segments, index])


def positions(inner: Any, batch: Batch, layout: Layout) -> Tensor:
    """Return `Long[rows, width]`, or `[axes, rows, width]` for multi-axis families, computed without the device.

    Every group counts from its own start, and every response of it starts where the prefix ends.

    Args:
        inner: The transformers model.
        batch: The groups.
        layout: Where they stand.
    """
    if not computes_own_positions(inner):
        return (layout.index + family_of(inner).first_position) * layout.tokens
    prefixes = _axes_of_prefixes(inner, batch)
    found = layout.ids.new_zeros((len(prefixes[0]), *layout.ids.shape))
    for number, ((row, start), axes) in enumerate(zip(layout.places, prefixes, strict=True)):
        prefix = axes.shape[1]
        found[:, row, start : start + prefix] = axes
        own = (layout.groups[row] == number) & (layout.segments[row] > PREFIX)
        found[:, row, own] = axes.max() + 1 + layout.index[row, own] - prefix
    return found


def _axes_of_prefixes(inner: Any, batch: Batch) -> list[Tensor]:
    """Return `Long[axes, prefix]` for every group, as the family itself counts them."""
    prefixes = Batch(tuple(replace(g, responses=()) for g in batch.groups))
    layout = Layout.padded(prefixes)
    index_of: Any = getattr(inner, "model", inner).get_rope_index
    known: dict[str, Any] = {"input_ids": layout.ids, "attention_mask": layout.tokens.long()}
    known["mm_token_type_ids"] = torch.zeros_like(layout.ids)
    family = family_of(inner)
    known |= family.token_inputs(prefixes, range(len(layout.places)), layout.places, layout.tokens)
    known |= family.vision_inputs(batch, [1] * len(batch.groups), without=("pixel_values",))
    accepted = inspect.signature(index_of).parameters
    axes: Tensor = index_of(**{name: value for name, value in known.items() if name in accepted})[0]
    return [axes[:, row, start:] for row, start in layout.places]
