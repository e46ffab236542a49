"""Batches of prompts of about equal length, in an order that a seed and the epoch decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from cwdpo.data.images import image_size
from cwdpo.data.schema import PromptGroup

__all__ = ["LengthGrouped", "estimated_length"]

_CHARACTERS_PER_TOKEN = 4
_PIXELS_PER_TOKEN = 28 * 28


def estimated_length(group: PromptGroup, processor: Any) -> int:
    """Return about how many tokens a prompt and its responses have. Reads the headers of its images, decodes nothing.

    Args:
        group: The prompt.
        processor: The model's processor.
    """
    sizes = [(height, width) for width, height in (image_size(image) for image in group.images)]
    text = sum(len(part.get("text", "")) for m in group.messages for part in _parts(m["content"]))
    text += sum(len(response.text) for response in group.responses)
    return text // _CHARACTERS_PER_TOKEN + _visual_tokens(sizes, processor)


def _parts(content: Any) -> list[dict[str, str]]:
    return [{"text": content}] if isinstance(content, str) else list(content)


def _visual_tokens(sizes: list[tuple[int, int]], processor: Any) -> int:
    if not sizes:
        return 0
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    try:
        return sum(count(image_sizes=sizes)["num_image_tokens"])  # type: ignore[misc]
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
        return sum(height * width // _PIXELS_PER_TOKEN for height, width in sizes)


class LengthGrouped(Sampler[int]):
    """Draws batches of similar length: rows in random order, sorted inside blocks of many batches.

    The order depends on the seed and the epoch alone, so that a resumed run follows the same one.

    Args:
        lengths: Of every row.
        batch_size: Rows of one update.
        seed: Fixes the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order: list[int] = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return iter(order)
