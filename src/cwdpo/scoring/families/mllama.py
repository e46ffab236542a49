"""Mllama (Llama 3.2 Vision): pictures are attended to by cross-attention, under a mask with a row for every token."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from cwdpo.scoring.batch import Batch
from cwdpo.scoring.family import Family

__all__ = ["Mllama"]

_MASK = "cross_attention_mask"


class Mllama(Family):
    """Llama 3.2 Vision. A row without pictures changes what rows with pictures in its batch compute."""

    name = "mllama"
    model_types = frozenset({"mllama"})
    one_at_a_time = True

    def token_inputs(
        self, batch: Batch, owner: Sequence[int], places: Sequence[tuple[int, int]], mask: Tensor
    ) -> dict[str, Tensor]:
        """Responses see the pictures that the prompt's last token sees."""
        rows = super().token_inputs(batch, owner, places, mask)
        for g, (row, start) in zip(owner, places, strict=True):
            seen = batch.groups[g].vision.get(_MASK)
            if seen is not None:
                rows.setdefault(_MASK, seen.new_zeros((*mask.shape, *seen.shape[2:])))
                rows[_MASK][row, start : start + seen.shape[1]] = seen[0]
                rows[_MASK][row, start + seen.shape[1] :] = seen[0, -1]
        return rows

    def vision_inputs(self, batch: Batch, repeats: Sequence[int], without: Collection[str] = ()) -> dict[str, Tensor]:
        """The mask is among the token inputs."""
        return super().vision_inputs(batch, repeats, (*without, _MASK))
