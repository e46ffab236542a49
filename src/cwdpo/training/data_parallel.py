"""How several processes share an update: who trains on which rows, and what stands in where something is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from torch.utils.data import DataLoader
from transformers import TrainingArguments

from cwdpo.data.schema import PromptGroup
from cwdpo.models.fsdp import is_sharded_weight
from cwdpo.models.parts import part_of
from cwdpo.scoring.batch import Batch, EncodedGroup, ResponseLogits
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.scorer import Scorer

__all__ = ["SharedBatches", "SharingScorer", "shared_loader"]


class _Order(Sized, Iterable[int], Protocol):
    """A sampler with a length."""


class SharedBatches:
    """Micro-batches of all ranks in turn: the first of every rank, then the second of every rank.

    Every update trains on the rows that it would have with one process. What is left at the end of an epoch is dealt
    out evenly, so that a rank may get less than others, or nothing: then an empty list.

    Args:
        sampler: The order of the rows.
        micro: Rows of a micro-batch.
        ranks: How many there are.
        accumulation: Micro-batches of an update on each rank.
        drop_last: Leave out what does not fill an update.
    """

    def __init__(
        self, sampler: _Order, *, micro: int, ranks: int, accumulation: int = 1, drop_last: bool = False
    ) -> None:
        self.sampler: Any = sampler  # accelerate puts its own in its place
        self._micro, self._accumulation, self._ranks, self.drop_last = micro, accumulation, ranks, drop_last

    @property
    def _update(self) -> int:
        return self._micro * self._accumulation * self._ranks

    def _rounds(self, rows: int) -> int:
        return -(-rows // (self._micro * self._ranks))

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self._update)
        return (whole * self._accumulation + (0 if self.drop_last else self._rounds(rest))) * self._ranks

    def __iter__(self) -> Iterator[list[int]]:
        rows: list[int] = []
        for row in self.sampler:
            rows.append(row)
            if len(rows) == self._update:
                yield from _dealt(rows, self._accumulation * self._ranks)
                rows = []
        if rows and not self.drop_last:
            yield from _dealt(rows, self._rounds(len(rows)) * self._ranks)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def _dealt(rows: Sequence[int], parts: int) -> Iterator[list[int]]:
    for i in range(parts):
        yield list(rows[len(rows) * i // parts : len(rows) * (i + 1) // parts])


def shared_loader(dataset: Any, batches: SharedBatches, collate: Any, args: TrainingArguments) -> DataLoader[Any]:
    """Return a loader of these micro-batches, with the arguments' workers."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )


class SharingScorer:
    """Scores a micro-batch beside others that other processes score, so that none waits for a call that never comes.

    Processes that share a model must call the same parts of it. A micro-batch without pictures has to call the picture
    encoder too, where that is trained or its weights are in several places. A prompt with a picture then stands in
    beside it, answered with one token, and counts for nothing.

    Args:
        scorer: Scores.
        rows: The data set that the stand-in comes from.
        encoder: The prompt encoder.
    """

    def __init__(self, scorer: Scorer, rows: Sequence[PromptGroup], encoder: PromptEncoder) -> None:
        self._scorer, self._rows, self._encoder = scorer, rows, encoder

    @cached_property
    def stand_in(self) -> EncodedGroup:
        """The first row with a picture, or the first row, with one token of its first response."""
        whole = self._encoder.encode(next((row for row in self._rows if row.images), self._rows[0]))
        return replace(whole, responses=(replace(whole.responses[0], ids=whole.responses[0].ids[:1]),))

    def __call__(self, model: Any, batch: Batch) -> ResponseLogits:
        """Score a batch that has rows."""
        if any(g.vision for g in batch.groups) or not (_meets_in_the_encoder(model) and self.stand_in.vision):
            return self._scorer(model, batch)
        found = self._scorer(model, Batch((*batch.groups, self.stand_in)))
        mine = found.rows < len(batch.responses)
        logits = found.logits[mine] + 0.0 * found.logits[~mine].sum()
        kept = (part[mine] for part in (found.targets, found.rows, found.columns))
        return ResponseLogits(logits, *kept, shape=(len(batch.responses), found.shape[1]), tokens=found.tokens)


def _meets_in_the_encoder(model: Any) -> bool:
    """Whether processes must all call the picture encoder: it is trained, or its weights are in several places."""
    return any(
        (p.requires_grad or is_sharded_weight(p)) and part_of(name) != "language"
        for name, p in model.named_parameters()
    )
