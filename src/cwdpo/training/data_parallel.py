"""How several processes share an update: which rows each trains on, what stands in for missing ones, and sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from cwdpo.data.images import image_size
from cwdpo.data.schema import PromptGroup
from cwdpo.models.fsdp import is_sharded_weight
from cwdpo.models.parts import part_of
from cwdpo.objectives.objective import Tally
from cwdpo.processes import Processes
from cwdpo.scoring.batch import Batch, EncodedGroup, ResponseLogits
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.scorer import Scorer

__all__ = [
    "LengthGrouped",
    "Meter",
    "SharedBatches",
    "SharingScorer",
    "add_up",
    "estimated_length",
    "means_over",
    "shared_loader",
]


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


class Meter:
    """Adds up what objectives tell of their micro-batches, until it is logged.

    Args:
        team: The processes that train together.
    """

    def __init__(self, team: Processes) -> None:
        self._team, self._tally = team, Tally()

    def merge(self, tally: Tally) -> None:
        """Add what one update told."""
        self._tally.merge(tally)

    def empty(self) -> dict[str, float]:
        """Return the means of what was added up, over all processes, and reset."""
        tally, self._tally = self._tally, Tally()
        return means_over(self._team, tally)

    def state(self) -> dict[str, dict[str, float]]:
        """Return what was added up, over all processes, in JSON's types."""
        sums, counts = totals_over(self._team, self._tally)
        return {"sums": sums, "counts": counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned; by one process only, since the next row adds up over all."""
        self._tally.sums = {name: torch.tensor(s, dtype=torch.float64) for name, s in state["sums"].items()}
        self._tally.counts = state["counts"]


def totals_over(team: Processes, tally: Tally) -> tuple[dict[str, float], dict[str, float]]:
    """Return the sums and the counts of a tally over all processes."""
    mine = ({name: float(total) for name, total in tally.sums.items()}, tally.counts)
    sums, counts = (add_up(parts) for parts in zip(*team.gather(mine), strict=True))
    return sums, counts


def means_over(team: Processes, tally: Tally) -> dict[str, float]:
    """Return the means of a tally over all processes."""
    sums, counts = totals_over(team, tally)
    return {name: sums[name] / counts[name] for name in sorted(sums)}


def add_up(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums of several mappings, name by name."""
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


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
